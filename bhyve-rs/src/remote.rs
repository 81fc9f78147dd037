//! Machines in other processes: the verbs of the control socket, from both ends, and starting in the background.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use emu::DeviceCell;
use host::control::{self, CallError, Members, Reply, Request, Server};
use host::keyboard::{self, Typist};
use serde_json::{Value, json};

use crate::media::{self, Change, Media};
use crate::vm::{Ended, Handle, Order, Status};
use crate::{SUCCESS, screenshot};

/// How long a machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a started machine may take until its control socket is there.
const STARTUP: Duration = Duration::from_secs(60);

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
    /// Press a machine's power button, as SIGTERM does.
    Stop {
        #[command(flatten)]
        target: Target,
        /// Wait until it has ended, and cut its power if that takes longer than this many seconds.
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
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
    /// Wait until a machine ends, and exit as it does.
    Wait {
        #[command(flatten)]
        target: Target,
    },
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
            Verb::Stop { target, timeout: None } => simple(target, "stop"),
            Verb::Stop { target, timeout: Some(seconds) } => stop(&target.socket(dir)?, Duration::from_secs(*seconds)),
            Verb::Kill { target } => simple(target, "kill"),
            Verb::Reset { target } => simple(target, "reset"),
            Verb::Pause { target } => simple(target, "pause"),
            Verb::Resume { target } => simple(target, "resume"),
            Verb::Status { target, json } => {
                let status = call(&target.socket(dir)?, "status", Some(PATIENCE))?;
                if *json {
                    println!("{}", Value::from(status));
                } else {
                    print!("{}", show(&status));
                }
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
            Verb::Wait { target } => {
                let results = call(&target.socket(dir)?, "wait", None)?;
                let status = results.get("status").and_then(Value::as_u64);
                let status = status.and_then(|status| u8::try_from(status).ok());
                status.ok_or_else(|| anyhow!("the machine does not say how it ended"))
            }
        }
    }
}

impl Target {
    fn socket(&self, dir: &Path) -> Result<PathBuf> {
        let name = match (&self.name, &self.config) {
            (Some(name), _) => name.clone(),
            (None, Some(file)) => crate::config::read(file, &[])?.text("name").to_owned(),
            (None, None) => bail!("no machine is named"),
        };
        if name.contains('/') {
            bail!("{name:?} is no name of a machine");
        }
        Ok(control::socket_path(dir, &name))
    }
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

fn answered(socket: &Path, answer: Result<Members, CallError>) -> Result<Members> {
    answer.map_err(|e| match e {
        CallError::NotRunning(_) => {
            anyhow!("no machine {:?} is running (there is no control socket {})", name_of(socket), socket.display())
        }
        e => e.into(),
    })
}

/// The machine that a socket belongs to.
fn name_of(socket: &Path) -> String {
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

fn stop(socket: &Path, limit: Duration) -> Result<u8> {
    call(socket, "stop", Some(PATIENCE))?;
    match control::call(socket, "wait", &Members::new(), Some(limit)) {
        Ok(_) | Err(CallError::NotRunning(_)) => return Ok(SUCCESS),
        Err(CallError::TimedOut) => {}
        Err(e) => return Err(e.into()),
    }
    eprintln!("bhyve-rs: the guest has not powered off in {} s; its power is cut", limit.as_secs());
    call(socket, "kill", Some(PATIENCE))?;
    Ok(SUCCESS)
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
}

/// The machine's end of its control socket.
///
/// # Errors
/// When a machine of the name is running already, and whatever the system says.
pub fn serve(dir: &Path, name: &str, reach: Reach) -> Result<Server> {
    control::make_run_dir(dir)?;
    Server::start(&control::socket_path(dir, name), move |request| reach.answer(request))
}

/// What `wait` is told.
pub fn results(ended: Option<Ended>) -> Members {
    let mut members = Members::new();
    let (status, text) = ended.map_or((Ended::Reboot as u8, "stopped"), |e| (e as u8, e.text()));
    members.insert("status".to_owned(), status.into());
    members.insert("how".to_owned(), text.into());
    members
}

/// The verbs of the control socket, and the arguments that they take.
const VERBS: [(&str, &[&str]); 11] = [
    ("stop", &[]),
    ("kill", &[]),
    ("reset", &[]),
    ("pause", &[]),
    ("resume", &[]),
    ("status", &[]),
    ("screenshot", &["as"]),
    ("sendkeys", &["keys"]),
    ("insert", &["drive", "force", "image"]),
    ("eject", &["drive", "force"]),
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
            "insert" | "eject" => return self.change(verb, request).map_or_else(Reply::Failed, Reply::Done),
            _ => return Reply::AtEnd,
        };
        match self.handle.ask(order) {
            Ok(status) if order == Order::Query => Reply::Done(members(&self.facts, status)),
            Ok(_) => Reply::Done(Members::new()),
            Err(why) => Reply::Failed(why),
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
        self.handle.change(change, image).map(|()| Members::new())
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

/// Starts the machine of a configuration file in the background, and returns when it runs. What it has to say goes to
/// `NAME.log` in the run directory.
///
/// # Errors
/// Why it does not run.
pub fn start(dir: &Path, file: &Path, set: &[String]) -> Result<u8> {
    let node = crate::config::read(file, set)?;
    let name = node.text("name");
    control::make_run_dir(dir)?;
    let socket = control::socket_path(dir, name);
    if control::call(&socket, "status", &Members::new(), Some(PATIENCE)).is_ok() {
        bail!("{name} is running already");
    }
    let log = dir.join(format!("{name}.log"));
    let out = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    let out = out.with_context(|| format!("log {}", log.display()))?;
    let begin = out.metadata()?.len();
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.arg("--run-dir").arg(dir).args(["run", "--background", "-c"]).arg(file);
    command.args(set.iter().flat_map(|s| ["-o", s]));
    // A process group of its own, so that the terminal's signals do not reach it.
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
    let mut child = command.spawn().context("cannot start a process")?;
    let deadline = Instant::now() + STARTUP;
    loop {
        if let Ok(status) = control::call(&socket, "status", &Members::new(), Some(PATIENCE)) {
            // A machine of the name that somebody else started in the meantime is not ours.
            if status.get("pid") == Some(&child.id().into()) {
                return Ok(SUCCESS);
            }
        }
        if let Some(status) = child.try_wait()? {
            let said = tail(&log, begin);
            let said = said.lines().last().unwrap_or("it says nothing");
            bail!("{name} did not start ({status}): {}", said.trim_start_matches("bhyve-rs: "));
        }
        if Instant::now() > deadline {
            bail!("{name} does not answer; its log is {}", log.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn tail(log: &Path, from: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let _ = file.seek(SeekFrom::Start(from)).and_then(|_| file.take(64 << 10).read_to_end(&mut text));
    }
    String::from_utf8_lossy(&text).into_owned()
}
