//! The processes of guests, found by their titles as all tools find them.

use std::process::Command;

use super::util;

/// A process and its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its arguments, joined by blanks.
    pub line: String,
}

/// What a guest's process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It is a loader.
    Loader(u32),
    /// It is bhyve.
    Running(u32),
}

/// All processes that can be seen.
pub fn list() -> Vec<Process> {
    if cfg!(target_os = "linux") { from_proc() } else { from_ps() }
}

/// The command line of a process.
pub fn line(pid: u32) -> Option<String> {
    let line = if cfg!(target_os = "linux") {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ")
    } else {
        util::output("ps", &["-ww", "-o", "args=", "-p", &pid.to_string()]).ok()?
    };
    (!line.is_empty()).then_some(line)
}

fn from_proc() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let process = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some(Process { pid, line: line(pid)? })
    };
    entries.filter_map(process).collect()
}

fn from_ps() -> Vec<Process> {
    let out = Command::new("ps").args(["-axww", "-o", "pid=", "-o", "args="]).output();
    let text = out.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (pid, line) = line.trim_start().split_once(' ')?;
            Some(Process { pid: pid.parse().ok()?, line: line.trim().to_owned() })
        })
        .collect()
}

/// The process of a guest.
pub fn stage(processes: &[Process], name: &str) -> Option<Stage> {
    let title = format!("bhyve: {name}");
    if let Some(process) = processes.iter().find(|p| p.line == title) {
        return Some(Stage::Running(process.pid));
    }
    processes.iter().find_map(|p| {
        let program = p.line.split(' ').next()?.rsplit('/').next()?;
        let last = p.line.rsplit(' ').next()?;
        match program {
            _ if last != name => None,
            "bhyveload" | "grub-bhyve" => Some(Stage::Loader(p.pid)),
            // It has not come to its title yet.
            "bhyve" => Some(Stage::Running(p.pid)),
            _ => None,
        }
    })
}

/// The guests that run, ours and others'.
pub fn running(processes: &[Process]) -> Vec<(String, u32)> {
    let title = |p: &Process| Some((p.line.strip_prefix("bhyve: ")?.to_owned(), p.pid));
    processes.iter().filter_map(title).collect()
}

/// Sends SIGTERM, the power button. A process that is gone needs none.
pub fn terminate(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX));
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_found_by_its_title_alone() {
        let all = [
            "vm _run web",
            "vi bhyve: web",
            "/usr/local/sbin/bhyveload -m 256M -d disk0.img db",
            "bhyve: web",
            "bhyve: web2",
            "/usr/sbin/bhyve -c 1 -m 256M new",
        ];
        let all: Vec<_> = (1..).zip(all).map(|(pid, line)| Process { pid, line: line.to_owned() }).collect();
        assert_eq!(stage(&all, "web"), Some(Stage::Running(4)));
        assert_eq!(stage(&all, "db"), Some(Stage::Loader(3)));
        assert_eq!(stage(&all, "new"), Some(Stage::Running(6)));
        assert_eq!(stage(&all, "we"), None);
        assert_eq!(running(&all), [("web".to_owned(), 4), ("web2".to_owned(), 5)]);
    }

    #[test]
    fn this_process_is_seen() {
        assert!(list().iter().any(|p| p.pid == std::process::id()));
    }
}
