use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::*;
use crate::ConsoleCommand;
use crate::console::tests::{Rig, until};
use crate::console::{self, ConsoleSpec};
use crate::watch_signals;

const HOW: &str = "BHYVE_RS_TERMINAL_TEST";

/// A program with a console on its terminal. The variable says how it ends.
#[test]
#[ignore = "the other tests run it, each on a terminal of its own"]
fn program() {
    let Ok(how) = std::env::var(HOW) else { return };
    watch_signals(|signal| {
        println!("signal {signal:?}\r");
        std::process::exit(7);
    })
    .unwrap();
    let rig = Rig::new();
    let (tx, commands) = channel();
    let hook: console::CommandHook = Arc::new(move |command| tx.send(command).unwrap());
    let (console, description) = console::open(&ConsoleSpec::Stdio, rig.io(), false, &hook).unwrap();
    let com = rig.plug(console, true);
    com.print(b"<ready>");
    assert!(description.flush(Duration::from_secs(20)));
    match how.as_str() {
        "return" => {}
        "exit" => std::process::exit(3),
        "abort" => std::process::abort(),
        "overflow" => {
            fn deeper(n: u64) -> u64 {
                let here = std::hint::black_box([n; 1000]);
                if here[0] == u64::MAX { 0 } else { deeper(n + 1) + here[(n % 1000) as usize] }
            }
            println!("{}", deeper(0));
        }
        "panic" => {
            let _ = std::thread::spawn(|| panic!("as planned")).join();
            com.print(b"<after>");
            std::thread::park();
        }
        "echo" => {
            let mut seen = 0;
            loop {
                let input = com.input();
                com.print(&input[seen..]);
                seen = input.len();
                if let Ok(command) = commands.recv_timeout(Duration::from_millis(1)) {
                    com.print(format!("<{command:?}>").as_bytes());
                    if command == ConsoleCommand::Quit {
                        assert!(description.flush(Duration::from_secs(20)));
                        return;
                    }
                }
            }
        }
        _ => std::thread::park(),
    }
}

struct Running {
    child: Child,
    keyboard: File,
    slave: OwnedFd,
    found: Termios,
    screen: String,
}

impl Running {
    /// Starts the program on a new terminal and waits until it is ready.
    fn start(how: &str) -> Running {
        let pair = openpty(None, None).unwrap();
        let mut found = tcgetattr(&pair.slave).unwrap();
        // Modes that no program sets by chance.
        found.control_chars[SpecialCharacterIndices::VERASE as usize] = b'#';
        found.local_flags.remove(LocalFlags::ECHOK);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &found).unwrap();
        let found = tcgetattr(&pair.slave).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["terminal::tests::program", "--exact", "--ignored", "--nocapture"]).env(HOW, how);
        let end = || Stdio::from(pair.slave.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(Stdio::null());
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY as _, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // The test harness has its threads before the program can block the signals for them.
                let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGTSTP, Signal::SIGCONT];
                Ok(signals.into_iter().collect::<SigSet>().thread_block()?)
            });
        }
        let child = command.spawn().unwrap();
        let mut running =
            Running { child, keyboard: File::from(pair.master), slave: pair.slave, found, screen: String::new() };
        running.shows("<ready>");
        running
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    fn shows(&mut self, text: &str) {
        until(text, || {
            let mut fds = [PollFd::new(self.keyboard.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(1u8)).unwrap() > 0 {
                let mut buf = [0; 1024];
                let n = self.keyboard.read(&mut buf).unwrap();
                self.screen += std::str::from_utf8(&buf[..n]).unwrap();
            }
            self.screen.contains(text)
        });
    }

    fn types(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    fn is_raw(&self) -> bool {
        let modes = self.modes();
        !modes.local_flags.intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    /// Waits for the end and says how it was, and whether the terminal is as it was found.
    fn end(&mut self) -> (ExitStatus, bool) {
        let mut status = None;
        until("the end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        (status.unwrap(), self.modes() == self.found)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_terminal_is_raw_while_the_program_runs_and_restored_when_it_returns_or_exits() {
    for (how, code) in [("return", 0), ("exit", 3)] {
        let (status, restored) = Running::start(how).end();
        assert_eq!((status.code(), restored), (Some(code), true), "{how}");
    }
    let mut running = Running::start("wait");
    assert!(running.is_raw());
    assert_ne!(running.modes(), running.found);
    // A witness that the checks can fail: nothing restores after this.
    running.child.kill().unwrap();
    assert!(!running.end().1);
}

#[test]
fn crashes_restore_the_terminal_and_end_the_program_as_ever() {
    for (how, signal) in [("abort", Signal::SIGABRT), ("overflow", Signal::SIGABRT)] {
        let (status, restored) = Running::start(how).end();
        assert_eq!((status.signal(), restored), (Some(signal as i32), true), "{how}");
    }
    for signal in CRASHES {
        let mut running = Running::start("wait");
        kill(running.pid(), signal).unwrap();
        let (status, restored) = running.end();
        assert_eq!((status.signal(), restored), (Some(signal as i32), true), "{signal}");
    }
}

#[test]
fn a_panic_restores_the_terminal_before_anything_else() {
    let mut running = Running::start("panic");
    running.shows("<after>");
    assert_eq!(running.modes(), running.found);
}

#[test]
fn signals_to_end_reach_the_program_and_its_exit_restores_the_terminal() {
    for (signal, name) in [(Signal::SIGTERM, "Terminate"), (Signal::SIGINT, "Interrupt"), (Signal::SIGHUP, "Hangup")] {
        let mut running = Running::start("wait");
        kill(running.pid(), signal).unwrap();
        let (status, restored) = running.end();
        running.shows(&format!("signal {name}"));
        assert_eq!((status.code(), restored), (Some(7), true), "{signal}");
    }
}

#[test]
fn a_suspended_program_gives_the_terminal_back_until_it_goes_on() {
    let mut running = Running::start("wait");
    for by_key in [false, true] {
        if by_key {
            running.types(b"\r~\x1a");
        } else {
            kill(running.pid(), Signal::SIGTSTP).unwrap();
        }
        let stopped = waitpid(running.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(running.pid(), Signal::SIGSTOP));
        assert_eq!(running.modes(), running.found);
        kill(running.pid(), Signal::SIGCONT).unwrap();
        until("raw again", || running.is_raw());
    }
    kill(running.pid(), Signal::SIGTERM).unwrap();
    assert!(running.end().1);
}

#[test]
fn keys_reach_the_guest_and_commands_the_program() {
    let mut running = Running::start("echo");
    // In a cooked terminal these would interrupt, end the input or be held until the end of the line.
    running.types(b"a~.\x03\x04\x1a\x11");
    running.shows("a~.\x03\x04\x1a\x11");
    running.types(b"\r~p");
    running.shows("<PowerButton>");
    running.types(b"~r~b");
    running.shows("<Reset>");
    running.shows("<Break>");
    running.types(b"~?");
    running.shows("~.   quit");
    running.types(b"~.");
    running.shows("<Quit>");
    let (status, restored) = running.end();
    assert_eq!((status.code(), restored), (Some(0), true));
}
