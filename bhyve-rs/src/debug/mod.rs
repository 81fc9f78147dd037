//! The debug server: GDB, or whoever speaks its remote protocol, looks at the guest's processors as threads.
//!
//! The protocol is the crate gdbstub's, one state machine a client; [`guest`] is what it drives, and [`registers`] how
//! GDB numbers registers. A thread of its own serves one client at a time. Whatever it wants of the machine it asks of the
//! main thread, as the control socket does; a debugger's stop is a pause, so that guest time stands still with it.

mod guest;
mod registers;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use gdbstub::common::{Signal, Tid};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine as Stub;
use gdbstub::stub::{DisconnectReason, GdbStubBuilder, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;
use host::{Bell, Door, Heard, Listener};

use self::guest::{Breakpoint, Guest};
use crate::vm::{Handle, Instance, Order, Spec};

/// Bytes of the longest packet.
const PACKET: usize = 4096;
/// No answer is as long: somebody has asked for all of memory in one packet.
const ANSWERS: usize = 1 << 20;

/// What the server's thread hears of the machine.
enum News {
    /// A processor stopped for the debugger.
    Stopped(u32, cpu::Stop),
    /// The machine has ended, with this status.
    Ended(u8),
}

/// The server.
pub struct Server {
    news: Sender<News>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the clients that come to `listener`. With `wait` the machine begins when the first one lets it.
    ///
    /// # Errors
    /// When the host has no descriptors or threads.
    pub fn start(
        listener: Listener,
        spec: &Spec,
        instance: &mut Instance,
        handle: &Handle,
        wait: bool,
    ) -> Result<Server> {
        let door = Door::open(listener).context("the debug server")?;
        let (news, hears) = channel();
        let bell = door.bell();
        let (tell, rings) = (news.clone(), bell.clone());
        let stopped = move |cpu, stop| {
            let _ = tell.send(News::Stopped(cpu, stop));
            rings.ring();
        };
        instance.debugged_by(Box::new(stopped), wait);
        let guest = Guest::new(handle.clone(), instance.debug_caps(), spec.cpus, spec.model.has(cpu::Feature::Lm));
        let mut desk = Desk { door, guest, hears, ended: None };
        let thread = std::thread::Builder::new().name("debug".to_owned()).spawn(move || desk.serve());
        Ok(Server { news, bell, thread: Some(thread.context("the debug server")?) })
    }

    /// Tells the debugger that the machine has ended, with this status.
    pub fn end(mut self, status: u8) {
        let _ = self.news.send(News::Ended(status));
        self.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What goes to the client next.
#[derive(Default)]
struct Out(Vec<u8>);

impl Connection for Out {
    type Error = &'static str;

    fn write(&mut self, byte: u8) -> Result<(), Self::Error> {
        self.write_all(&[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        if self.0.len() + bytes.len() > ANSWERS {
            return Err("the answer is too long");
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

type Session = Stub<'static, Guest, Out>;

/// The server's thread.
struct Desk {
    door: Door,
    guest: Guest,
    hears: Receiver<News>,
    ended: Option<u8>,
}

impl Desk {
    fn serve(&mut self) {
        while self.ended.is_none() {
            match self.door.wait() {
                Ok(Heard::Visitor) => {}
                Ok(_) => {
                    self.hear();
                    continue;
                }
                Err(e) => return tracing::warn!("the debug server has ended: {e}"),
            }
            let kill = self.session().unwrap_or_else(|e| {
                tracing::debug!("a debugger is sent away: {e:#}");
                false
            });
            self.door.dismiss();
            if self.ended.is_none() {
                self.guest.let_go(kill.then_some(Order::Kill));
            }
        }
    }

    /// The next stop that is news.
    fn hear(&mut self) -> Option<(u32, cpu::Stop)> {
        while let Ok(news) = self.hears.try_recv() {
            match news {
                News::Stopped(cpu, stop) => return Some((cpu, stop)),
                News::Ended(status) => self.ended = Some(status),
            }
        }
        None
    }

    /// Serves a client until it goes, is sent away, or the machine ends. `true`: it wants an end.
    fn session(&mut self) -> Result<bool> {
        self.guest.take().map_err(anyhow::Error::msg)?;
        // Of those before it.
        self.hear();
        let wrong = |e: &dyn std::fmt::Display| anyhow::anyhow!("{e}");
        let stub = GdbStubBuilder::new(Out::default()).packet_buffer_size(PACKET).build().map_err(|e| wrong(&e))?;
        let mut stub: Session = stub.run_state_machine(&mut self.guest).map_err(|e| wrong(&e))?;
        let mut bytes = Vec::new().into_iter();
        loop {
            let said = std::mem::take(match &mut stub {
                Stub::Idle(s) => &mut s.borrow_conn().0,
                Stub::Running(s) => &mut s.borrow_conn().0,
                Stub::CtrlCInterrupt(s) => &mut s.borrow_conn().0,
                Stub::Disconnected(s) => &mut s.borrow_conn().0,
            });
            self.door.say(&said)?;
            stub = match stub {
                Stub::Disconnected(s) => return Ok(s.get_reason() == DisconnectReason::Kill),
                Stub::CtrlCInterrupt(s) => {
                    self.guest.halt().map_err(anyhow::Error::msg)?;
                    let reason = match self.hear() {
                        Some((cpu, stop)) => self.reason(cpu, stop),
                        None => {
                            let tid = self.guest.current();
                            MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGINT }
                        }
                    };
                    s.interrupt_handled(&mut self.guest, Some(reason)).map_err(|e| wrong(&e))?
                }
                Stub::Idle(s) if let Some(byte) = bytes.next() => {
                    s.incoming_data(&mut self.guest, byte).map_err(|e| wrong(&e))?
                }
                Stub::Running(s) if let Some(byte) = bytes.next() => {
                    s.incoming_data(&mut self.guest, byte).map_err(|e| wrong(&e))?
                }
                Stub::Running(s) if let Some((cpu, stop)) = self.hear() => {
                    let reason = self.reason(cpu, stop);
                    s.report_stop(&mut self.guest, reason).map_err(|e| wrong(&e))?
                }
                Stub::Running(s) if let Some(status) = self.ended => {
                    s.report_stop(&mut self.guest, MultiThreadStopReason::Exited(status)).map_err(|e| wrong(&e))?
                }
                Stub::Idle(_) if self.ended.is_some() => return Ok(false),
                stub => {
                    match self.door.wait()? {
                        Heard::Bytes(heard) => bytes = heard.into_iter(),
                        Heard::Gone => return Ok(false),
                        // A stop that comes while it is stopped is of a processor that will come there again.
                        Heard::Bell if matches!(stub, Stub::Idle(_)) => _ = self.hear(),
                        Heard::Bell | Heard::Visitor => {}
                    }
                    stub
                }
            };
        }
    }

    /// A stop in GDB's terms.
    fn reason(&mut self, cpu: u32, stop: cpu::Stop) -> MultiThreadStopReason<u64> {
        let (tid, found) = self.guest.stopped(cpu);
        match stop {
            cpu::Stop::Breakpoint if found == Some(Breakpoint::Hard) => MultiThreadStopReason::HwBreak(tid),
            cpu::Stop::Breakpoint if found == Some(Breakpoint::Soft) => MultiThreadStopReason::SwBreak(tid),
            cpu::Stop::Step | cpu::Stop::Breakpoint => {
                MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP }
            }
            cpu::Stop::Watch(watch) => {
                let kind = match (watch.reads, watch.writes) {
                    (true, true) => WatchKind::ReadWrite,
                    (true, false) => WatchKind::Read,
                    _ => WatchKind::Write,
                };
                MultiThreadStopReason::Watch { tid, kind, addr: watch.address }
            }
        }
    }
}

/// GDB's name of a processor.
fn tid(cpu: u32) -> Tid {
    Tid::new(cpu as usize + 1).unwrap_or(Tid::MIN)
}
