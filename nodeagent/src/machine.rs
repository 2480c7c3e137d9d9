//! What the machine offers, as the kernel tells it.

use std::{fs, io, path::Path};

/// The machine this agent runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub millicpus: i64,
    /// Bytes.
    pub memory: i64,
    pub machine_id: String,
    pub boot_id: String,
    pub system_uuid: String,
    pub kernel: String,
    pub os_image: String,
    /// As Go names it: `amd64`, `arm64`.
    pub architecture: &'static str,
}

impl Machine {
    /// Looks at the machine. What a machine may lack is empty.
    pub(crate) fn look() -> io::Result<Self> {
        let n_cpus = std::thread::available_parallelism()?.get();
        let memory = memory_field("MemTotal:")?;
        let text = |path: &str| {
            fs::read_to_string(path).map(|it| it.trim().to_owned()).unwrap_or_default()
        };
        Ok(Self {
            millicpus: i64::try_from(n_cpus).unwrap_or(i64::MAX / 1000) * 1000,
            memory,
            machine_id: text("/etc/machine-id"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            system_uuid: text("/sys/class/dmi/id/product_uuid"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(&text("/etc/os-release")),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        })
    }
}

/// Room on the file system that holds `path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub bytes: u64,
    pub bytes_free: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

impl Room {
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(Self {
            bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            bytes_free: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_free: stat.f_favail,
        })
    }
}

/// Memory that new work could get without swapping, in bytes.
pub(crate) fn memory_available() -> io::Result<i64> {
    memory_field("MemAvailable:")
}

/// Memory in use that could not be had back at once, in bytes.
pub(crate) fn memory_used() -> io::Result<u64> {
    let used = memory_field("MemTotal:")? - memory_field("MemFree:")?;
    let used = used - memory_field("Inactive(file):")?;
    Ok(u64::try_from(used).unwrap_or(0))
}

/// Processes and threads there are, and how many there can be.
pub(crate) fn processes() -> io::Result<(u64, u64)> {
    let number = |text: &str| text.trim().parse::<u64>().map_err(io::Error::other);
    // Fourth field: running/all.
    let load = fs::read_to_string("/proc/loadavg")?;
    let all = load.split_whitespace().nth(3).and_then(|it| it.split_once('/'));
    let (_, all) = all.ok_or_else(|| io::Error::other("/proc/loadavg has no fourth field"))?;
    let limit = number(&fs::read_to_string("/proc/sys/kernel/pid_max")?)?;
    let threads = number(&fs::read_to_string("/proc/sys/kernel/threads-max")?)?;
    Ok((number(all)?, limit.min(threads)))
}

fn memory_field(name: &str) -> io::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|it| it.trim().trim_end_matches(" kB").parse::<i64>().ok());
    let kibibytes =
        kibibytes.ok_or_else(|| io::Error::other(format!("/proc/meminfo has no {name}")))?;
    Ok(kibibytes.saturating_mul(1024))
}

fn os_image(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |it| it.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_looked_at() {
        let machine = Machine::look().unwrap();
        assert!(machine.millicpus >= 1000 && machine.memory > 1 << 20);
        assert!(!machine.kernel.is_empty());
        assert!(memory_available().unwrap() <= machine.memory);
        let (n, limit) = processes().unwrap();
        assert!(0 < n && n < limit);
        assert!(Room::at(Path::new("/")).unwrap().bytes > 0);
    }

    #[test]
    fn os_names() {
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(os_image(""), "Linux");
    }
}
