//! Running the system's own tools.

use std::process::{Command, Stdio};

use crate::{
    clock,
    error::{LabError, Result},
    file::{Cable, LabFile},
};

/// Runs a command line of words without spaces; gives what it printed.
pub(crate) fn run(line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (program, arguments) = words.split_first().ok_or_else(|| invalid(line))?;
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, None)
}

/// Fails if a program that `file` needs is not on this machine: before anything is made.
pub(crate) fn check(file: &LabFile) -> Result<()> {
    let hosts = || file.hosts.values();
    let processes = || hosts().flat_map(|host| host.run.values());
    let shapes = |cable: &Cable| cable.bandwidth.is_some() || cable.loss != 0.0;
    let needed = [
        ("ip", true),
        ("nft", true),
        ("nsenter", true),
        ("mount", hosts().any(|host| host.disk.is_some())),
        ("tc", hosts().flat_map(|host| host.on.values()).any(shapes)),
        ("strace", processes().any(|process| process.flush_delay.is_some())),
    ];
    needed.iter().filter(|(_, is_needed)| *is_needed).try_for_each(|(tool, _)| find(tool))?;
    match processes().any(|process| process.skew.is_some()) {
        true => clock::library().map(drop),
        false => Ok(()),
    }
}

/// Fails if `program` is not on this machine.
pub(crate) fn find(program: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
        true => Ok(()),
        false => {
            let source = std::io::ErrorKind::NotFound.into();
            Err(LabError::Missing { tool: program.to_owned(), source })
        }
    }
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
