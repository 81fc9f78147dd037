//! Machines in other processes: the verbs of the control socket, from both ends, and starting in the background.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use emu::DeviceCell;
use host::console::Consoles;
use host::control::{self, CallError, Members, Reply, Request, Server};
use host::keyboard::{self, Typist};
use host::net::Cable;
use serde_json::{Value, json};

use crate::inspect::{self, Processor};
pub use crate::keeper::start;
use crate::media::{self, Change, Media};
use crate::stop::Policy;
use crate::tell::say;
use crate::vm::{Ended, Handle, Order, Status};
use crate::{SUCCESS, life, screenshot, visit};

/// How long a machine may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The exit status when something did not come in time, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;

/// Which machine.
#[derive(Args)]
pub struct Target {
    /// Its name.
    #[arg(required_unless_present = "config")]
    name: Option<String>,
    /// Its configuration file, instead of its name.
    #[arg(short, long = "config", value_name = "FILE", conflicts_with = "name")]
    config: Option<PathBuf>,
}

/// What other processes can do to a machine.
#[derive(Subcommand)]
pub enum Verb {
    /// Bring a machine to an end, as its configuration's [stop] says: ask the guest, ask again, cut its power.
    Stop {
        #[command(flatten)]
        target: Target,
        /// Cut its power if that takes longer than this many seconds; 0: never.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Ask the guest again after this many seconds; 0: never.
        #[arg(long, value_name = "SECONDS")]
        repeat: Option<u64>,
        /// How it is asked: auto, acpi, keyboard, or kill.
        #[arg(long, value_name = "HOW")]
        method: Option<String>,
        /// Do not wait until it has ended.
        #[arg(long)]
        no_wait: bool,
    },
    /// Cut a machine's power.
    Kill {
        #[command(flatten)]
        target: Target,
    },
    /// Press a machine's reset button.
    Reset {
        #[command(flatten)]
        target: Target,
    },
    /// Stop a machine's processors and its time.
    Pause {
        #[command(flatten)]
        target: Target,
    },
    /// Let a paused machine go on.
    Resume {
        #[command(flatten)]
        target: Target,
    },
    /// Show what a machine is and does.
    Status {
        #[command(flatten)]
        target: Target,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put what is on a machine's screen into a file.
    Screenshot {
        #[command(flatten)]
        target: Target,
        /// The characters of a text screen, to standard output if there is no -o.
        #[arg(long)]
        text: bool,
        /// The file [default: the machine's name with .png, in this directory].
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Type at a machine's keyboard: text as it is, other keys by name: "reboot<enter>", "<ctrl-alt-delete>", "<wait
    /// 2>".
    Sendkeys {
        /// Its name.
        name: String,
        /// What is typed, one after the other.
        #[arg(required = true, allow_hyphen_values = true)]
        keys: Vec<String>,
    },
    /// Put an image into a CD-ROM or diskette drive of a machine, in place of what is in there.
    Insert {
        #[command(flatten)]
        drive: Drive,
        /// Image.
        #[arg(short, long, value_name = "FILE")]
        image: PathBuf,
    },
    /// Take out what is in a CD-ROM or diskette drive of a machine.
    Eject {
        #[command(flatten)]
        drive: Drive,
    },
    /// Pull the plug of a machine's network card, or put it in again.
    Link {
        /// The machine.
        name: String,
        /// The card: nic0, nic1, ...
        nic: String,
        /// Whether the plug is in.
        #[arg(value_parser = ["up", "down"])]
        state: String,
    },
    /// Write the frames of a machine's network card to a file, for tcpdump -r, until `bhyve-rs capture NAME NIC stop`.
    Capture {
        /// The machine.
        name: String,
        /// The card: nic0, nic1, ...
        nic: String,
        /// The file, which is made anew, or `stop`.
        file: PathBuf,
    },
    /// Show what a machine's processors have done, as bhyvectl --get-stats does.
    Stats(Look),
    /// Show the registers of a machine's processors, which stand still for a moment.
    Registers(Look),
    /// Send a processor of a machine (the first, if none is named) an NMI.
    Nmi {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        processor: Processor,
    },
    /// Wait until a machine ends, and exit as it does; or until a text comes out of a console, and exit with 0.
    Wait {
        #[command(flatten)]
        target: Target,
        /// Exit with 124 if it takes longer than this many seconds.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
        /// Wait for this text.
        #[arg(long = "for", value_name = "TEXT", allow_hyphen_values = true)]
        text: Option<String>,
        /// Where it comes out: com1 to com4, or screen.
        #[arg(long, value_name = "PORT", default_value = "com1", requires = "text")]
        console: String,
        /// Do not take a text that is there already.
        #[arg(long, requires = "text")]
        new: bool,
    },
}

/// A look at processors.
#[derive(Args)]
pub struct Look {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    processor: Processor,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Look {
    fn run(&self, dir: &Path, verb: &str, show: fn(&Members) -> String) -> Result<u8> {
        let results = call_with(&self.target.socket(dir)?, verb, self.processor.member(), Some(PATIENCE))?;
        Ok(print(results, self.json, show))
    }
}

/// A drive of a machine.
#[derive(Args)]
pub struct Drive {
    #[command(flatten)]
    target: Target,
    /// Drive: cd0, floppy0 ...
    #[arg(short, long, value_name = "DRIVE", default_value = "cd0")]
    drive: String,
    /// Even if the guest has locked the drive.
    #[arg(long)]
    force: bool,
}

impl Verb {
    /// Carries it out and returns the exit status.
    ///
    /// # Errors
    /// One line for the user.
    pub fn run(&self, dir: &Path) -> Result<u8> {
        let simple = |target: &Target, verb: &str| {
            call(&target.socket(dir)?, verb, Some(PATIENCE))?;
            Ok(SUCCESS)
        };
        match self {
            Verb::Stop { target, timeout, repeat, method, no_wait } => {
                let mut args = Members::new();
                let numbers = [("timeout", timeout), ("repeat", repeat)];
                args.extend(numbers.iter().filter_map(|(key, n)| Some(((*key).to_owned(), (**n)?.into()))));
                args.extend(method.iter().map(|method| ("method".to_owned(), method.as_str().into())));
                life::stop(&target.socket(dir)?, args, *no_wait)
            }
            Verb::Kill { target } => simple(target, "kill"),
            Verb::Reset { target } => simple(target, "reset"),
            Verb::Pause { target } => simple(target, "pause"),
            Verb::Resume { target } => simple(target, "resume"),
            Verb::Status { target, json } => {
                let status = call(&target.socket(dir)?, "status", Some(PATIENCE))?;
                Ok(print(status, *json, show))
            }
            Verb::Stats(look) => look.run(dir, "stats", inspect::show_stats),
            Verb::Registers(look) => look.run(dir, "registers", inspect::show_registers),
            Verb::Nmi { target, processor } => {
                call_with(&target.socket(dir)?, "nmi", processor.member(), Some(PATIENCE))?;
                Ok(SUCCESS)
            }
            Verb::Screenshot { target, text, output } => {
                take_screenshot(&target.socket(dir)?, *text, output.as_deref())
            }
            Verb::Sendkeys { name, keys } => {
                // What is wrong with it is said before anybody is asked.
                let keys = keys.concat();
                keyboard::parse(&keys).map_err(|e| anyhow!(e))?;
                let target = Target { name: Some(name.clone()), config: None };
                call_with(&target.socket(dir)?, "sendkeys", argument("keys", keys), Some(PATIENCE))?;
                Ok(SUCCESS)
            }
            Verb::Insert { drive, image } => {
                let image = media::absolute(image)?;
                let path = image.to_str().ok_or_else(|| anyhow!("{} is no UTF-8", image.display()))?;
                let Drive { target, drive, force } = drive;
                // Who asks for it opens it: the machine's process may not open what it likes.
                let file = host::disk::lend(&image, !drive.starts_with("cd")).with_context(|| path.to_owned())?;
                let args = json!({ "drive": drive, "force": force, "image": path });
                change(target, dir, "insert", &args, Some(&file))
            }
            Verb::Eject { drive: Drive { target, drive, force } } => {
                change(target, dir, "eject", &json!({ "drive": drive, "force": force }), None)
            }
            Verb::Link { name, nic, state } => {
                ask(&socket_of(dir, name)?, "link", &json!({ "nic": nic, "state": state }))?;
                Ok(SUCCESS)
            }
            Verb::Capture { name, nic, file } if file.as_os_str() == "stop" => {
                let said = ask(&socket_of(dir, name)?, "capture", &json!({ "nic": nic, "stop": true }))?;
                let count = |key: &str| said.get(key).and_then(Value::as_u64).unwrap_or(0);
                say(&format!("{} frames captured, {} lost", count("frames"), count("lost")));
                Ok(SUCCESS)
            }
            Verb::Capture { name, nic, file } => {
                let socket = socket_of(dir, name)?;
                // Who asks for it makes it: the machine's process may not write where it likes. It is emptied when the machine
                // has accepted it, as it may be that of a capture that is under way.
                let made = File::options().write(true).create(true).truncate(false).mode(0o600).open(file);
                let made = made.with_context(|| file.display().to_string())?;
                let args = argument("nic", nic.as_str());
                answered(&socket, control::call_with(&socket, "capture", &args, Some(&made), Some(PATIENCE)))?;
                Ok(SUCCESS)
            }
            Verb::Wait { target, timeout, text, console, new } => {
                let (socket, limit) = (target.socket(dir)?, timeout.map(Duration::from_secs));
                match text {
                    Some(text) => Ok(match visit::wait_for(&socket, console, text, *new, limit)? {
                        true => SUCCESS,
                        false => TIMED_OUT,
                    }),
                    None => life::wait(&socket, limit),
                }
            }
        }
    }
}

impl Target {
    fn socket(&self, dir: &Path) -> Result<PathBuf> {
        match (&self.name, &self.config) {
            (Some(name), _) => socket_of(dir, name),
            (None, Some(file)) => socket_of(dir, crate::config::read(file, &[])?.text("name")),
            (None, None) => bail!("no machine is named"),
        }
    }
}

/// The control socket of a machine.
///
/// # Errors
/// When that cannot be its name.
pub fn socket_of(dir: &Path, name: &str) -> Result<PathBuf> {
    crate::compat::node::valid(name)?;
    Ok(control::socket_path(dir, name))
}

/// Asks a machine.
///
/// # Errors
/// One line for the user.
pub fn ask(socket: &Path, verb: &str, args: &Value) -> Result<Members> {
    call_with(socket, verb, args.as_object().cloned().unwrap_or_default(), Some(PATIENCE))
}

/// Goes to a console: our end of the stream, and what the machine says.
///
/// # Errors
/// One line for the user.
pub fn attach(socket: &Path, args: &Value) -> Result<(UnixStream, Members)> {
    let (ours, its) = UnixStream::pair().context("a pair of sockets")?;
    let args = args.as_object().cloned().unwrap_or_default();
    let its = File::from(OwnedFd::from(its));
    let place = answered(socket, control::call_with(socket, "console", &args, Some(&its), Some(PATIENCE)))?;
    Ok((ours, place))
}

/// Has something done to a drive.
fn change(target: &Target, dir: &Path, verb: &str, args: &Value, file: Option<&File>) -> Result<u8> {
    let (socket, args) = (target.socket(dir)?, args.as_object().cloned().unwrap_or_default());
    answered(&socket, control::call_with(&socket, verb, &args, file, Some(PATIENCE)))?;
    Ok(SUCCESS)
}

fn call(socket: &Path, verb: &str, limit: Option<Duration>) -> Result<Members> {
    call_with(socket, verb, Members::new(), limit)
}

fn call_with(socket: &Path, verb: &str, args: Members, limit: Option<Duration>) -> Result<Members> {
    answered(socket, control::call(socket, verb, &args, limit))
}

/// The results, or one line for the user.
///
/// # Errors
/// Whatever went wrong.
pub fn answered<T>(socket: &Path, answer: Result<T, CallError>) -> Result<T> {
    answer.map_err(|e| match e {
        CallError::NotRunning(_) => {
            anyhow!("no machine {:?} is running (there is no control socket {})", name_of(socket), socket.display())
        }
        e => e.into(),
    })
}

/// The machine that a socket belongs to.
pub fn name_of(socket: &Path) -> String {
    socket.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn argument(name: &str, value: impl Into<Value>) -> Members {
    Members::from_iter([(name.to_owned(), value.into())])
}

fn take_screenshot(socket: &Path, text: bool, output: Option<&Path>) -> Result<u8> {
    let take = |as_what: &str| -> Result<String> {
        let mut results = call_with(socket, "screenshot", argument("as", as_what), Some(PATIENCE))?;
        match results.remove(as_what) {
            Some(Value::String(text)) => Ok(text),
            _ => bail!("the machine sent no {as_what}"),
        }
    };
    let put = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).with_context(|| path.display().to_string());
    match (text, output) {
        (true, Some(path)) => put(path, take("text")?.as_bytes())?,
        (true, None) => print!("{}", take("text")?),
        (false, path) => {
            let picture = BASE64_STANDARD.decode(take("png")?).context("the machine sent no picture")?;
            let name = format!("{}.png", name_of(socket));
            put(path.unwrap_or(Path::new(&name)), &picture)?;
        }
    }
    Ok(SUCCESS)
}

/// Prints results as JSON, or as text.
fn print(results: Members, json: bool, show: fn(&Members) -> String) -> u8 {
    if json {
        println!("{}", Value::from(results));
    } else {
        print!("{}", show(&results));
    }
    SUCCESS
}

/// A status as text, a line a member.
fn show(status: &Members) -> String {
    let mut out = String::new();
    let mut members: Vec<_> = status.iter().collect();
    members.sort_by_key(|(key, _)| !["name", "state"].contains(&key.as_str()));
    for (key, value) in members {
        let text = match value {
            Value::String(s) => s.clone(),
            Value::Object(places) => places
                .iter()
                .map(|(k, v)| format!("{k} {}", v.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join("; "),
            other => other.to_string(),
        };
        out.push_str(&format!("{key:<14} {text}\n"));
    }
    out
}

/// What the verbs reach of a machine.
pub struct Reach {
    /// Its orders.
    pub handle: Handle,
    /// The members of its status that do not change.
    pub facts: Members,
    /// Its display adapter.
    pub screen: Option<Arc<DeviceCell>>,
    /// Who types at its keyboard.
    pub typist: Arc<Typist>,
    /// Its drives.
    pub media: Arc<Media>,
    /// What its network cards are connected by.
    pub cables: BTreeMap<u32, Cable>,
    /// Its consoles, if they have a server.
    pub consoles: Option<Consoles>,
    /// How it is stopped if nobody says otherwise.
    pub stop: Policy,
}

/// The machine's end of its control socket.
///
/// # Errors
/// When a machine of the name is running already, and whatever the system says.
pub fn serve(dir: &Path, name: &str, reach: Reach) -> Result<Server> {
    control::make_run_dir(dir)?;
    let events = reach.handle.events().clone();
    Server::start(&control::socket_path(dir, name), &events, move |request| reach.answer(request))
}

/// What `wait` is told: with what status, how, whether people had it end, and whether it will be started again.
pub fn results(ended: Option<Ended>, asked: bool, why: Option<&str>, again: bool) -> Value {
    let (status, how) = ended.map_or((Ended::Reboot as u8, "stopped"), |e| (e as u8, e.text()));
    let mut results = json!({ "status": status, "how": how, "asked": asked, "again": again });
    if let Some(why) = why {
        results["why"] = why.lines().next().unwrap_or_default().into();
    }
    results
}

/// The verbs of the control socket, and the arguments that they take.
const VERBS: [(&str, &[&str]); 22] = [
    ("stop", &[]),
    ("shutdown", &["method", "repeat", "timeout"]),
    ("events", &["since"]),
    ("kill", &[]),
    ("reset", &[]),
    ("pause", &[]),
    ("resume", &[]),
    ("status", &[]),
    ("screenshot", &["as"]),
    ("sendkeys", &["keys"]),
    ("insert", &["drive", "force", "image"]),
    ("eject", &["drive", "force"]),
    ("link", &["nic", "state"]),
    ("capture", &["nic", "stop"]),
    ("stats", &["cpu"]),
    ("registers", &["cpu"]),
    ("nmi", &["cpu"]),
    ("console", &["port", "readonly", "force", "from", "columns", "lines"]),
    ("take", &["client"]),
    ("resize", &["client", "columns", "lines"]),
    ("break", &["port"]),
    ("wait", &[]),
];

impl Reach {
    fn answer(&self, request: Request) -> Reply {
        let Some((verb, takes)) = VERBS.into_iter().find(|(verb, _)| *verb == request.verb) else {
            let verbs = VERBS.map(|(verb, _)| verb).join(", ");
            return Reply::Failed(format!("unknown verb {:?}; there are {verbs}", request.verb));
        };
        if let Some(unknown) = request.args.keys().find(|key| !takes.contains(&key.as_str())) {
            return Reply::Failed(format!("{verb} takes no argument {unknown:?}"));
        }
        let order = match verb {
            "stop" => Order::PowerButton,
            "kill" => Order::Kill,
            "reset" => Order::Reset,
            "pause" => Order::Pause,
            "resume" => Order::Resume,
            "status" => Order::Query,
            "screenshot" => return self.screenshot(&request.args).map_or_else(Reply::Failed, Reply::Done),
            "sendkeys" => return self.sendkeys(&request.args).map_or_else(Reply::Failed, Reply::Done),
            "break" => match request.args.get("port").and_then(Value::as_str) {
                Some(port @ ("com1" | "com2" | "com3" | "com4")) => {
                    Order::Break(usize::from(port.as_bytes()[3] - b'1'))
                }
                _ => return Reply::Failed("which port? com1, com2, com3 or com4".to_owned()),
            },
            "shutdown" => {
                let done = self.stop.with(&request.args).and_then(|policy| self.handle.stop(policy));
                return done.map_or_else(Reply::Failed, |()| Reply::Done(Members::new()));
            }
            "events" => {
                return match request.args.get("since").map(Value::as_u64) {
                    Some(None) => Reply::Failed("\"since\" is the number of an event".to_owned()),
                    since => Reply::Events(since.flatten()),
                };
            }
            "console" | "take" | "resize" => {
                return self.console(verb, request).map_or_else(Reply::Failed, Reply::Done);
            }
            "insert" | "eject" => return self.change(verb, request).map_or_else(Reply::Failed, Reply::Done),
            "link" => return self.link(&request.args).map_or_else(Reply::Failed, Reply::Done),
            "capture" => return self.capture(request).map_or_else(Reply::Failed, Reply::Done),
            "stats" => return inspect::stats(&self.handle, &request.args).map_or_else(Reply::Failed, Reply::Done),
            "registers" => {
                return inspect::registers(&self.handle, &request.args).map_or_else(Reply::Failed, Reply::Done);
            }
            "nmi" => return inspect::nmi(&self.handle, &request.args).map_or_else(Reply::Failed, Reply::Done),
            _ => return Reply::AtEnd,
        };
        match self.handle.ask(order) {
            Ok(status) if order == Order::Query => Reply::Done(members(&self.facts, status)),
            Ok(_) => Reply::Done(Members::new()),
            Err(why) => Reply::Failed(why),
        }
    }

    fn console(&self, verb: &str, request: Request) -> Result<Members, String> {
        let consoles = self.consoles.as_ref().ok_or("the machine has no console server")?;
        match verb {
            "console" => {
                let place = visit::attach(consoles, request)?;
                let event = json!({ "port": place["port"], "client": place["client"], "writes": place["writes"] });
                self.handle.events().tell("console-attached", event);
                Ok(place)
            }
            _ => visit::change(consoles, verb, &request.args),
        }
    }

    fn change(&self, verb: &str, request: Request) -> Result<Members, String> {
        let Request { args, file, .. } = request;
        let text = |key: &str| args.get(key).and_then(Value::as_str);
        let drive = text("drive").ok_or("which drive?")?.to_owned();
        let path = text("image").map(PathBuf::from);
        if verb == "insert" && path.is_none() {
            return Err("which image?".to_owned());
        }
        let force = args.get("force").and_then(Value::as_bool).unwrap_or(false);
        let mut change = Change { drive, path, file, force };
        let image = self.media.open(&mut change)?;
        let event = json!({ "drive": change.drive, "image": change.path });
        self.handle.change(change, image)?;
        self.handle.events().tell("media", event);
        Ok(Members::new())
    }

    /// The cable of a network card.
    fn cable(&self, args: &Members) -> Result<&Cable, String> {
        let name = args.get("nic").and_then(Value::as_str).ok_or("which network card?")?;
        let number = name.strip_prefix("nic").and_then(|n| n.parse().ok());
        number.and_then(|n: u32| self.cables.get(&n)).ok_or_else(|| {
            let all: Vec<String> = self.cables.keys().map(|n| format!("nic{n}")).collect();
            format!("there is no network card {name:?} with a cable; there are: {}", all.join(", "))
        })
    }

    fn link(&self, args: &Members) -> Result<Members, String> {
        let cable = self.cable(args)?;
        match args.get("state").and_then(Value::as_str) {
            Some("up") => cable.plug(true),
            Some("down") => cable.plug(false),
            _ => return Err("link needs \"state\": \"up\" or \"down\"".to_owned()),
        }
        self.handle.events().tell("link", json!({ "nic": args["nic"], "state": args["state"] }));
        Ok(Members::new())
    }

    fn capture(&self, request: Request) -> Result<Members, String> {
        let cable = self.cable(&request.args)?;
        if request.args.get("stop").and_then(Value::as_bool) == Some(true) {
            let ended = cable.end_capture().map_err(|e| format!("the capture has failed: {e}"))?;
            let (frames, lost) = ended.ok_or("no capture is under way")?;
            return Ok(json!({ "frames": frames, "lost": lost }).as_object().cloned().unwrap_or_default());
        }
        let file = request.file.ok_or("capture needs the descriptor of a file, or \"stop\": true")?;
        cable.capture(file).map(|()| Members::new()).map_err(|e| e.to_string())
    }

    fn sendkeys(&self, args: &Members) -> Result<Members, String> {
        let text = args.get("keys").and_then(Value::as_str).ok_or("sendkeys needs \"keys\", a text")?;
        match self.typist.press(&keyboard::parse(text)?) {
            true => Ok(Members::new()),
            false => Err("the guest does not read its keyboard, and too many keys wait already".to_owned()),
        }
    }

    fn screenshot(&self, args: &Members) -> Result<Members, String> {
        match args.get("as").and_then(Value::as_str) {
            Some("text") => Ok(argument("text", screenshot::text(self.screen.as_ref())?)),
            Some("png") => Ok(argument("png", BASE64_STANDARD.encode(screenshot::png(self.screen.as_ref())?))),
            _ => Err("screenshot needs \"as\": \"text\", or \"png\" for a picture in base64".to_owned()),
        }
    }
}

fn members(facts: &Members, status: Status) -> Members {
    let mut members = facts.clone();
    members.insert("state".to_owned(), if status.paused { "paused" } else { "running" }.into());
    members.insert("guest_seconds".to_owned(), json!(status.guest_ns as f64 / 1e9));
    members.insert("resets".to_owned(), status.resets.into());
    members
}
