//! Running the system's own tools.

use std::process::{Command, Stdio};

use crate::error::{LabError, Result};

/// Runs a command line of words without spaces; gives what it printed.
pub(crate) fn run(line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (program, arguments) = words.split_first().ok_or_else(|| invalid(line))?;
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, None)
}

/// Feeds `rules` to nftables in a network namespace, all or nothing.
pub(crate) fn nft(namespace: &str, rules: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "nft", "-f", "-"]);
    finish(command, Some(rules)).map(drop)
}

fn invalid(line: &str) -> LabError {
    LabError::Invalid(format!("{line:?} is no command"))
}

fn finish(mut command: Command, input: Option<&str>) -> Result<String> {
    use std::io::Write as _;
    let shown = || {
        let words: Vec<_> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        words.join(" ")
    };
    let line = shown();
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.spawn().map_err(|source| LabError::Missing { tool: program, source })?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A tool that does not read to the end says why below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|source| LabError::io("run", &line, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Tool { command: line, output: said.trim().to_owned() })
}
