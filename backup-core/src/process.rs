//! The one way to run an external program.
//!
//! A program is an argument array, never a shell line; it gets a clean environment, a process group of its own and a
//! time limit. One that answers what it reads can be kept and asked again, with a limit for each answer. Never: a secret in
//! an argument, a message or the log; a process that outlives its limit, its cancellation or its handle; output held without
//! a bound; something asked of a kept program that is being ended.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use command_fds::CommandFdExt;
use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use secrecy::{ExposeSecret, SecretString};

use crate::error::{Error, ErrorKind, Result};
use crate::progress::Cancel;

/// What the system lets any pipe hold if it is asked to.
const STREAM_BYTES: usize = 1 << 20;
/// How long a program may take to end after it was asked politely.
const GRACE: Duration = Duration::from_secs(2);
/// The pauses between two looks at a running program, at first and at most.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// Of what a program says, so much is kept for the error message…
const TAIL_LINES: usize = 10;
/// …in lines of at most so many bytes…
const LINE_BYTES: usize = 500;
/// …and so many lines reach the log.
const LOG_LINES: usize = 1_000;

/// What of our own environment a program gets. A list of what is passed, not of what is held back: our
/// environment carries passwords under names that only the operator knows.
const PASSED_ENVIRONMENT: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",
    "DOCKER_HOST",
    "DOCKER_CONTEXT",
    "DOCKER_CONFIG",
    "DOCKER_CERT_PATH",
    "DOCKER_TLS_VERIFY",
    "DOCKER_API_VERSION",
    "CONTAINER_HOST",
    "COMPOSE_PROJECT_NAME",
    "COMPOSE_FILE",
    "COMPOSE_PROFILES",
];

/// A program with its arguments, not yet running. Can be run any number of times.
#[derive(Clone)]
pub struct Program {
    name: OsString,
    args: Vec<Argument>,
    env: Vec<(OsString, SecretString)>,
    hidden: Vec<SecretString>,
    dir: Option<PathBuf>,
}

#[derive(Clone)]
enum Argument {
    Plain(OsString),
    /// `prefix` followed by the path of a file that only the program can read.
    SecretFile {
        prefix: OsString,
        content: SecretString,
    },
}

impl Program {
    /// A program and its arguments, the program first; it is looked up in `PATH`.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`] when the array is empty or begins with an empty string.
    pub fn new<I>(argv: I) -> Result<Self>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let mut argv = argv.into_iter().map(Into::into);
        let name = argv.next().filter(|name| !name.is_empty()).ok_or_else(|| {
            Error::new(
                ErrorKind::Configuration,
                "a command to run is empty; give the program and its arguments as a list",
            )
        })?;
        Ok(Self {
            name,
            args: argv.map(Argument::Plain).collect(),
            env: Vec::new(),
            hidden: Vec::new(),
            dir: None,
        })
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(Argument::Plain(arg.into()));
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<I>(mut self, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.args
            .extend(args.into_iter().map(|arg| Argument::Plain(arg.into())));
        self
    }

    /// One more argument: `prefix` and the path of a sealed file in memory, readable by this user alone, that holds
    /// `content` and is gone when the program ends. This is how a program gets a secret that must not be in its arguments.
    #[must_use]
    pub fn secret_file_arg(mut self, prefix: impl Into<OsString>, content: SecretString) -> Self {
        self.args.push(Argument::SecretFile {
            prefix: prefix.into(),
            content,
        });
        self
    }

    /// A variable in the program's environment, which is otherwise clean: of ours it gets the search path, the
    /// home, the language and where to find a container service, and nothing else. Its value never reaches the log.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: &SecretString) -> Self {
        self.env.push((name.into(), value.clone()));
        self.hide(value)
    }

    /// Keep `secret` out of the log and of errors, should the program print it.
    #[must_use]
    pub fn hide(mut self, secret: &SecretString) -> Self {
        if !secret.expose_secret().is_empty() {
            self.hidden.push(secret.clone());
        }
        self
    }

    /// Run it in this directory instead of our own.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Run it to its end without input, what it prints going to the log line by line. Children that it leaves
    /// running in the background (a service that it started) stay.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`] when there is no such program, [`ErrorKind::Timeout`] after `limit` and
    /// [`ErrorKind::Cancelled`] (its whole process group is killed), [`ErrorKind::Failed`] with its last
    /// lines when it does not exit with 0.
    pub fn run(&self, limit: Duration, cancel: &Cancel) -> Result<()> {
        let running = self.start(Pipes::Log, limit, cancel)?;
        running.wait()
    }

    /// Run it to its end on `input` and give what it prints, at most `max_bytes`.
    ///
    /// # Errors
    /// As [`Program::run`]; [`ErrorKind::Failed`] when it prints more.
    pub fn output(
        &self,
        input: &[u8],
        max_bytes: usize,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<Vec<u8>> {
        let mut running = self.spawn(limit, cancel)?;
        let printed = running.exchange(input, max_bytes)?;
        running.wait()?;
        Ok(printed)
    }

    /// Start it with its standard input and output as pipes, to be taken from the [`Running`] program.
    ///
    /// # Errors
    /// [`ErrorKind::Configuration`] when there is no such program; [`ErrorKind::Cancelled`].
    pub fn spawn(&self, limit: Duration, cancel: &Cancel) -> Result<Running> {
        self.start(Pipes::Open, limit, cancel)
    }

    /// Start it to be asked with [`Kept::ask`]; `limit` is for what comes before that.
    ///
    /// # Errors
    /// As [`Program::spawn`].
    pub(crate) fn keep(&self, limit: Duration, cancel: &Cancel) -> Result<Kept> {
        let mut running = self.spawn(limit, cancel)?;
        Ok(Kept {
            stdin: running.take_stdin(),
            stdout: running.take_stdout(),
            running,
        })
    }

    fn start(&self, pipes: Pipes, limit: Duration, cancel: &Cancel) -> Result<Running> {
        cancel.check()?;
        if let Some(dir) = &self.dir
            && !dir.is_dir()
        {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "cannot run `{self}` in {}: there is no such directory",
                    dir.display()
                ),
            ));
        }
        let mut child = self
            .command(pipes)?
            .spawn()
            .map_err(|error| self.spawn_error(error))?;
        let said = Arc::new(Said::new(self));
        if let Some(stderr) = child.stderr.take() {
            read_lines(stderr, Arc::clone(&said));
        }
        let (mut stdin, mut stdout) = (None, None);
        match pipes {
            Pipes::Log => {
                if let Some(stdout) = child.stdout.take() {
                    read_lines(stdout, Arc::clone(&said));
                }
            }
            Pipes::Open => (stdin, stdout) = (child.stdin.take(), child.stdout.take()),
        }
        let watch = Arc::new(Watch::new(Turn::work(limit, cancel)));
        thread::spawn({
            let watch = Arc::clone(&watch);
            move || watch.set_end(supervise(child, pipes, &watch))
        });
        Ok(Running {
            described: self.to_string(),
            limit,
            watch,
            said,
            stdin,
            stdout,
        })
    }

    fn command(&self, pipes: Pipes) -> Result<Command> {
        let mut command = Command::new(&self.name);
        let mut inherited = Vec::new();
        for arg in &self.args {
            match arg {
                Argument::Plain(arg) => command.arg(arg),
                Argument::SecretFile { prefix, content } => {
                    let file = sealed_file(content).map_err(|error| {
                        Error::io(format!("cannot pass a secret to `{self}`"), error)
                    })?;
                    let mut path = prefix.clone();
                    path.push(format!("/proc/self/fd/{}", file.as_raw_fd()));
                    inherited.push(file);
                    command.arg(path)
                }
            };
        }
        if !inherited.is_empty() {
            // Under their own numbers: a number of our choice could be one that the standard library uses between fork and exec.
            command.preserved_fds(inherited);
        }
        command.env_clear();
        for (name, value) in std::env::vars_os() {
            if PASSED_ENVIRONMENT.iter().any(|passed| name == *passed)
                || name.as_bytes().starts_with(b"LC_")
            {
                command.env(name, value);
            }
        }
        for (name, value) in &self.env {
            command.env(name, value.expose_secret());
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.stdin(match pipes {
            Pipes::Log => Stdio::null(),
            Pipes::Open => Stdio::piped(),
        });
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Ok(command)
    }

    fn spawn_error(&self, error: std::io::Error) -> Error {
        let name = self.name.display();
        match error.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorKind::Configuration,
                format!(
                    "the program {name} was not found; install it or correct the command in the configuration"
                ),
            ),
            std::io::ErrorKind::PermissionDenied => Error::caused(
                ErrorKind::Configuration,
                format!(
                    "the program {name} may not be run; correct its permissions or the command in the configuration"
                ),
                error,
            ),
            _ => Error::io(format!("cannot start {name}"), error),
        }
    }
}

/// The command for a message: the program and its arguments, shortened; no secrets, for there are none in them.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 120;
        let mut text = self.name.to_string_lossy().into_owned();
        for arg in &self.args {
            text.push(' ');
            match arg {
                Argument::Plain(arg) => text.push_str(&arg.to_string_lossy()),
                Argument::SecretFile { prefix, .. } => {
                    text.push_str(&prefix.to_string_lossy());
                    text.push('…');
                }
            }
        }
        if text.chars().count() > LONGEST {
            text = text.chars().take(LONGEST).chain(['…']).collect();
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({self})")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pipes {
    /// Nothing to read, and what it prints goes to the log.
    Log,
    /// Standard input and output are the caller's.
    Open,
}

/// A file in memory that only this user, and a child that inherits it, can open.
fn sealed_file(content: &SecretString) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("secret", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    // A new one is open to the world, and the clients of MySQL ignore option files that others can write.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content.expose_secret().as_bytes())?;
    let fd = OwnedFd::from(file);
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(fd)
}

/// A program that runs. Dropping it kills the program and everything in its process group.
pub struct Running {
    described: String,
    limit: Duration,
    watch: Arc<Watch>,
    said: Arc<Said>,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Running {
    /// The program's standard input, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// The program's standard output, once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// Let its input and its output hold a megabyte on their way, for a program that streams: it and we wait less for each other. Where that is not to be
    /// had they hold what they did. What was taken already stays as it is.
    pub fn widen(&self) {
        let pipes = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, STREAM_BYTES);
        }
    }

    /// Wait for the program's end. A program that reads its standard input ends only after whoever took that closed it.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`], [`ErrorKind::Cancelled`], [`ErrorKind::Failed`]: as [`Program::run`].
    pub fn wait(&self) -> Result<()> {
        let end = self.watch.wait();
        match end {
            End::Exited(status) if status.success() => Ok(()),
            End::Exited(status) => {
                self.said.wait_for_readers();
                Err(Error::new(
                    ErrorKind::Failed,
                    format!(
                        "`{}` {}{}",
                        self.described,
                        tell(status),
                        self.said.tail_after_colon()
                    ),
                ))
            }
            End::Deadline => Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "`{}` took longer than {} seconds and was stopped{}",
                    self.described,
                    self.limit.as_secs_f32().ceil(),
                    self.said.tail_after_colon()
                ),
            )),
            End::Cancelled => Err(Error::new(
                ErrorKind::Cancelled,
                "the operation was cancelled",
            )),
            End::Stopped => Err(Error::new(
                ErrorKind::Failed,
                format!("`{}` was stopped", self.described),
            )),
            End::Lost(code) => Err(Error::io(
                format!("cannot tell how `{}` ended", self.described),
                std::io::Error::from_raw_os_error(code),
            )),
        }
    }

    /// Kill the program and everything in its process group now, and wait until they are gone.
    pub fn kill(&self) {
        self.watch.stop();
    }

    /// Write `input`, close, and read what comes back, at the same time.
    fn exchange(&mut self, input: &[u8], max_bytes: usize) -> Result<Vec<u8>> {
        let (stdin, stdout) = (self.stdin.take(), self.stdout.take());
        let mut printed = Vec::new();
        let read = thread::scope(|scope| {
            scope.spawn(move || {
                if let Some(mut stdin) = stdin {
                    // A program may end without having read everything; its exit status says whether that was right.
                    let _ = stdin.write_all(input);
                }
            });
            match stdout {
                Some(stdout) => stdout.take(max_bytes as u64 + 1).read_to_end(&mut printed),
                None => Ok(0),
            }
        });
        read.map_err(|error| {
            Error::io(
                format!("cannot read what `{}` prints", self.described),
                error,
            )
        })?;
        if printed.len() > max_bytes {
            return Err(self.stopped_for_printing(max_bytes));
        }
        Ok(printed)
    }

    /// Read what comes before `end`; none when the output ends first.
    fn read_up_to(
        &self,
        end: &[u8],
        stdout: Option<&mut ChildStdout>,
        max_bytes: usize,
    ) -> Result<Option<Vec<u8>>> {
        let Some(stdout) = stdout else {
            return Ok(None);
        };
        let mut printed = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match stdout.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(n) => printed.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.kill();
                    return Err(Error::io(
                        format!("cannot read what `{}` prints", self.described),
                        error,
                    ));
                }
            }
            let answer = printed.strip_suffix(end).map(<[u8]>::len);
            if answer.unwrap_or_else(|| printed.len().saturating_sub(end.len())) > max_bytes {
                return Err(self.stopped_for_printing(max_bytes));
            }
            if let Some(answer) = answer {
                printed.truncate(answer);
                return Ok(Some(printed));
            }
        }
    }

    fn stopped_for_printing(&self, max_bytes: usize) -> Error {
        self.kill();
        Error::new(
            ErrorKind::Failed,
            format!(
                "`{}` printed more than {max_bytes} bytes and was stopped",
                self.described
            ),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({})", self.described)
    }
}

/// A program that runs to be asked one thing after the other. Dropping it closes its input, so that it ends by itself; one that does not is killed.
pub(crate) struct Kept {
    running: Running,
    /// Not while it rests: whoever has it has the say.
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
}

impl Kept {
    /// Write `input` and give what comes back before `end`, with which an answer ends and which cannot be in it; at most `max_bytes`.
    ///
    /// # Errors
    /// As [`Program::output`], and [`ErrorKind::Failed`] when the program ends before the answer does. After an error it has ended.
    pub(crate) fn ask(
        &mut self,
        input: &[u8],
        end: &[u8],
        max_bytes: usize,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<Vec<u8>> {
        self.running.limit = limit;
        let may_begin = self.running.watch.begin(Turn::work(limit, cancel));
        let (running, stdout) = (&self.running, &mut self.stdout);
        let stdin = self.stdin.take().filter(|_| may_begin);
        let (answer, stdin) = thread::scope(|scope| {
            let write = scope.spawn(move || {
                let mut stdin = stdin?;
                // A program that ended takes no more; why, its exit status tells.
                stdin.write_all(input).ok().map(|()| stdin)
            });
            let answer = running.read_up_to(end, stdout.as_mut(), max_bytes);
            (answer, write.join().ok().flatten())
        });
        let Some(answer) = answer? else {
            self.running.wait()?;
            return Err(Error::new(
                ErrorKind::Failed,
                format!("`{}` ended before its answer", self.running.described),
            ));
        };
        self.stdin = stdin;
        Ok(answer)
    }

    /// Until it is woken nothing is asked of it, and after `most` its input is closed.
    pub(crate) fn rest(&mut self, most: Duration) {
        // What it said until now has nothing to do with how it ends.
        self.running.said.lock().tail.clear();
        if let (Some(stdin), Some(until)) = (self.stdin.take(), Instant::now().checked_add(most)) {
            self.running.watch.begin(Turn::Rest { until, stdin });
        }
    }

    /// Whether it can be asked again. Of one that has ended since, only asking tells.
    pub(crate) fn wake(&mut self, limit: Duration, cancel: &Cancel) -> bool {
        self.stdin = self.running.watch.wake(Turn::work(limit, cancel));
        self.stdin.is_some()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let last_turn = || Turn::work(GRACE, &Cancel::new());
        let watch = &self.running.watch;
        if let Some(stdin) = self.stdin.take().or_else(|| watch.wake(last_turn())) {
            watch.begin(last_turn());
            drop(stdin);
            watch.wait();
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({})", self.running.described)
    }
}

fn tell(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// How a program came to its end.
#[derive(Debug, Clone, Copy)]
enum End {
    Exited(ExitStatus),
    Deadline,
    Cancelled,
    /// Its handle was dropped, or it was killed through it.
    Stopped,
    /// The operating system would not tell, with this error code.
    Lost(i32),
}

/// What a program may do at the moment.
enum Turn {
    /// Work up to a time, and for as long as nobody calls it off.
    Work {
        deadline: Option<Instant>,
        cancel: Cancel,
    },
    /// Wait for more input up to a time; then there is none. Whoever takes the input out of here is the one who may write.
    Rest { until: Instant, stdin: ChildStdin },
}

impl Turn {
    fn work(limit: Duration, cancel: &Cancel) -> Self {
        Self::Work {
            deadline: Instant::now().checked_add(limit),
            cancel: cancel.clone(),
        }
    }
}

/// What the thread that watches a program and its handle tell each other.
struct Watch {
    state: Mutex<WatchState>,
    changed: Condvar,
}

struct WatchState {
    turn: Turn,
    stop: bool,
    /// Something should be looked at now, and often.
    look: bool,
    /// It is being ended, or has ended: nobody may begin anything with it.
    is_over: bool,
    end: Option<End>,
}

/// What the thread that watches a program finds after a pause.
enum Found {
    Nothing,
    /// The program is about to end.
    SoonOver,
    MustEnd(End),
}

impl Watch {
    fn new(turn: Turn) -> Self {
        Self {
            state: Mutex::new(WatchState {
                turn,
                stop: false,
                look: false,
                is_over: false,
                end: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, WatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_end(&self, end: End) {
        let mut state = self.lock();
        state.is_over = true;
        state.end = Some(end);
        drop(state);
        self.changed.notify_all();
    }

    /// Whether there is another turn.
    fn begin(&self, turn: Turn) -> bool {
        let mut state = self.lock();
        if !state.is_over {
            state.turn = turn;
        }
        !state.is_over
    }

    /// The input of a program that rests, which then has another turn; none when it does not rest any more.
    fn wake(&self, turn: Turn) -> Option<ChildStdin> {
        let mut state = self.lock();
        if state.is_over || matches!(state.turn, Turn::Work { .. }) {
            return None;
        }
        match std::mem::replace(&mut state.turn, turn) {
            Turn::Rest { stdin, .. } => Some(stdin),
            Turn::Work { .. } => None,
        }
    }

    fn wait(&self) -> End {
        let mut state = self.lock();
        // Who waits has mostly seen the end coming: of what the program prints, or of what it is given to read.
        state.look = true;
        self.changed.notify_all();
        loop {
            if let Some(end) = state.end {
                return end;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.wait();
    }

    /// Pause for so long, or until something should be looked at.
    fn pause(&self, pause: Duration) -> Found {
        let state = self.lock();
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, pause, |state| !state.stop && !state.look)
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let must_end = match &state.turn {
            _ if state.stop => Some(End::Stopped),
            Turn::Work { cancel, .. } if cancel.is_cancelled() => Some(End::Cancelled),
            Turn::Work { deadline, .. } if deadline.is_some_and(|deadline| now >= deadline) => {
                Some(End::Deadline)
            }
            Turn::Rest { until, .. } if now >= *until => {
                state.turn = Turn::work(GRACE, &Cancel::new());
                state.look = true;
                None
            }
            Turn::Work { .. } | Turn::Rest { .. } => None,
        };
        if let Some(end) = must_end {
            state.is_over = true;
            return Found::MustEnd(end);
        }
        match std::mem::take(&mut state.look) {
            true => Found::SoonOver,
            false => Found::Nothing,
        }
    }
}

/// Watch over `child` until it has ended by itself or had to be killed, and reap it.
fn supervise(mut child: Child, pipes: Pipes, watch: &Watch) -> End {
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return End::Lost(rustix::io::Errno::SRCH.raw_os_error());
    };
    let mut pause = SHORTEST_PAUSE;
    let forced = loop {
        // Not reaped yet: as long as it is not, its process group's number cannot be anybody else's.
        match has_ended(group) {
            Ok(true) => break None,
            Ok(false) => {}
            Err(code) => break Some(End::Lost(code)),
        }
        pause = match watch.pause(pause) {
            Found::Nothing => (pause * 2).min(LONGEST_PAUSE),
            Found::SoonOver => SHORTEST_PAUSE,
            Found::MustEnd(end) => break Some(end),
        };
    };
    if forced.is_some() {
        signal(group, Signal::TERM);
        let patience = Instant::now() + GRACE;
        while matches!(has_ended(group), Ok(false)) && Instant::now() < patience {
            thread::sleep(Duration::from_millis(2));
        }
    }
    // Of a program that streams, nobody may stay behind and hold its pipes open; one that is run may have started a service.
    if forced.is_some() || pipes == Pipes::Open {
        signal(group, Signal::KILL);
    }
    match (forced, child.wait()) {
        (Some(end), _) => end,
        (None, Ok(status)) => End::Exited(status),
        (None, Err(error)) => End::Lost(error.raw_os_error().unwrap_or_default()),
    }
}

fn has_ended(pid: Pid) -> Result<bool, i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match rustix::process::waitid(WaitId::Pid(pid), options) {
        Ok(status) => Ok(status.is_some()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.raw_os_error()),
    }
}

fn signal(group: Pid, signal: Signal) {
    // The only failure is that nobody of the group is left.
    let _ = rustix::process::kill_process_group(group, signal);
}

/// What a program printed for people: logged as it comes, the last lines kept.
struct Said {
    program: String,
    hidden: Vec<SecretString>,
    state: Mutex<SaidState>,
    reader_done: Condvar,
}

#[derive(Default)]
struct SaidState {
    tail: VecDeque<String>,
    lines: usize,
    readers: usize,
}

impl Said {
    fn new(program: &Program) -> Self {
        Self {
            program: program.name.to_string_lossy().into_owned(),
            hidden: program.hidden.clone(),
            state: Mutex::default(),
            reader_done: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, SaidState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, line: &[u8]) {
        let mut line = String::from_utf8_lossy(line).into_owned();
        for secret in &self.hidden {
            line = line.replace(secret.expose_secret(), "[secret]");
        }
        let line: String = line
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.lines += 1;
        if state.lines <= LOG_LINES {
            tracing::info!(program = self.program, "{line}");
        }
        if state.tail.len() == TAIL_LINES {
            state.tail.pop_front();
        }
        state.tail.push_back(line.to_owned());
    }

    /// After a program's end its last words are still in the pipe; but a child that it left behind may keep the
    /// pipe open for ever.
    fn wait_for_readers(&self) {
        let state = self.lock();
        drop(
            self.reader_done
                .wait_timeout_while(state, Duration::from_secs(1), |state| state.readers > 0),
        );
    }

    fn tail(&self) -> String {
        self.lock()
            .tail
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("; ")
    }

    fn tail_after_colon(&self) -> String {
        match self.tail() {
            tail if tail.is_empty() => String::new(),
            tail => format!(": {tail}"),
        }
    }
}

/// Read `from` to its end in a thread of its own.
fn read_lines(mut from: impl Read + Send + 'static, said: Arc<Said>) {
    said.lock().readers += 1;
    thread::spawn(move || {
        let mut line = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    for &byte in buffer.iter().take(n) {
                        if byte == b'\n' {
                            said.line(&line);
                            line.clear();
                        } else if line.len() < LINE_BYTES {
                            line.push(byte);
                        }
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        said.line(&line);
        said.lock().readers -= 1;
        said.reader_done.notify_all();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(script: &str) -> Program {
        Program::new(["sh", "-c", script]).unwrap()
    }

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    #[track_caller]
    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "never happened: {what}");
            thread::yield_now();
        }
    }

    fn alive(pid: &str) -> bool {
        // A zombie that nobody has reaped yet is not alive.
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn an_empty_command_is_a_configuration_error() {
        assert_eq!(
            Program::new(Vec::<String>::new()).unwrap_err().kind(),
            ErrorKind::Configuration
        );
        assert_eq!(
            Program::new([""]).unwrap_err().kind(),
            ErrorKind::Configuration
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Program::new(["no-such-program-here"])
            .unwrap()
            .run(LONG, &Cancel::new())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(
            error
                .to_string()
                .contains("no-such-program-here was not found"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_directory_is_not_taken_for_a_missing_program() {
        let error = sh("true")
            .dir(Path::new("/no/such/dir"))
            .run(LONG, &Cancel::new())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains("/no/such/dir"), "{error}");
    }

    #[test]
    fn a_failure_tells_the_exit_status_and_the_last_lines() {
        let error = sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i >&2; done; exit 7")
            .run(LONG, &Cancel::new())
            .unwrap_err();
        assert!(error.to_string().contains("exit status 7"), "{error}");
        assert!(error.to_string().contains("line 12"), "{error}");
        assert!(!error.to_string().contains("line 2;"), "{error}");
    }

    #[test]
    fn a_death_by_signal_is_told() {
        let error = sh("kill -9 $$").run(LONG, &Cancel::new()).unwrap_err();
        assert!(error.to_string().contains("signal 9"), "{error}");
    }

    #[test]
    fn arguments_reach_the_program_as_they_are() {
        let printed = Program::new(["printf", "%s|"])
            .unwrap()
            .args(["a b", "$(id)", "", "*"])
            .output(b"", 1_000, LONG, &Cancel::new())
            .unwrap();
        assert_eq!(printed, b"a b|$(id)||*|");
    }

    #[test]
    fn input_and_output_larger_than_a_pipe_pass_through() {
        let input = vec![b'x'; 3_000_000];
        let printed = Program::new(["cat"])
            .unwrap()
            .output(&input, 4_000_000, LONG, &Cancel::new())
            .unwrap();
        assert_eq!(printed, input);
    }

    #[test]
    fn too_much_output_is_an_error() {
        let error = sh("yes")
            .output(b"", 10_000, LONG, &Cancel::new())
            .unwrap_err();
        assert!(
            error.to_string().contains("more than 10000 bytes"),
            "{error}"
        );
    }

    #[test]
    fn the_deadline_kills_the_whole_group_even_if_it_ignores_the_request() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > pid; while :; do sleep 1; done' & wait; wait";
        let error = sh(script)
            .dir(dir.path())
            .run(Duration::from_millis(500), &Cancel::new())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        eventually("the grandchild is gone", || !alive(pid.trim()));
    }

    #[test]
    fn cancelling_ends_a_running_program() {
        let cancel = Cancel::new();
        let program = sh("exec sleep 1000");
        thread::scope(|scope| {
            let run = scope.spawn(|| program.run(LONG, &cancel));
            cancel.cancel();
            assert_eq!(
                run.join().unwrap().unwrap_err().kind(),
                ErrorKind::Cancelled
            );
        });
    }

    #[test]
    fn dropping_the_handle_leaves_no_process_and_no_zombie() {
        let mut running = sh("echo $$; exec sleep 1000")
            .spawn(LONG, &Cancel::new())
            .unwrap();
        let mut stdout = running.take_stdout().unwrap();
        let mut pid = String::new();
        let mut byte = [0];
        while stdout.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            pid.push(char::from(byte[0]));
        }
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    /// Prints its number first, then each line that it is given and a last one.
    fn parrot() -> Kept {
        let script = "echo $$; echo end; while read -r line; do echo \"$line\"; echo end; done; echo bye >&2";
        sh(script).keep(LONG, &Cancel::new()).unwrap()
    }

    fn ask(kept: &mut Kept, input: &str) -> Result<String> {
        let answer = kept.ask(input.as_bytes(), b"end\n", 1_000, LONG, &Cancel::new())?;
        Ok(String::from_utf8(answer).unwrap())
    }

    #[test]
    fn a_kept_program_answers_one_question_after_the_other() {
        let mut kept = parrot();
        ask(&mut kept, "").unwrap();
        assert_eq!(ask(&mut kept, "one\n").unwrap(), "one\n");
        kept.rest(LONG);
        assert!(kept.wake(LONG, &Cancel::new()));
        assert_eq!(ask(&mut kept, "two\n").unwrap(), "two\n");
    }

    #[test]
    fn questions_and_answers_larger_than_a_pipe_pass_through_a_kept_program() {
        let mut kept = Program::new(["cat"])
            .unwrap()
            .keep(LONG, &Cancel::new())
            .unwrap();
        for letter in [b'x', b'y'] {
            let question = [vec![letter; 3_000_000], b"end\n".to_vec()].concat();
            let answer = kept.ask(&question, b"end\n", 3_000_000, LONG, &Cancel::new());
            assert_eq!(answer.unwrap(), vec![letter; 3_000_000]);
        }
    }

    #[test]
    fn a_kept_program_that_is_dropped_ends_by_itself_and_leaves_no_zombie() {
        for rests in [true, false] {
            let mut kept = parrot();
            let pid = ask(&mut kept, "").unwrap();
            if rests {
                kept.rest(LONG);
            }
            let said = Arc::clone(&kept.running.said);
            drop(kept);
            assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());
            said.wait_for_readers();
            assert_eq!(said.tail(), "bye");
        }
    }

    #[test]
    fn a_kept_program_that_nobody_asks_for_too_long_ends_by_itself_and_is_asked_nothing_more() {
        let mut kept = parrot();
        let pid = ask(&mut kept, "").unwrap();
        kept.rest(Duration::ZERO);
        let pid = format!("/proc/{}", pid.trim());
        eventually("it is gone", || !Path::new(&pid).exists());
        assert!(!kept.wake(LONG, &Cancel::new()));
        ask(&mut kept, "more\n").unwrap_err();
        assert_eq!(kept.running.said.tail(), "bye");
    }

    #[test]
    fn a_kept_program_that_ends_before_its_answer_tells_why() {
        let mut kept = sh("read -r line; echo half; echo \"no $line\" >&2; exit 3")
            .keep(LONG, &Cancel::new())
            .unwrap();
        let error = ask(&mut kept, "way\n").unwrap_err().to_string();
        assert!(error.contains("exit status 3: no way"), "{error}");
        ask(&mut kept, "again\n").unwrap_err();
        let mut kept = sh("exit 0").keep(LONG, &Cancel::new()).unwrap();
        let error = ask(&mut kept, "").unwrap_err().to_string();
        assert!(error.contains("ended before its answer"), "{error}");
    }

    #[test]
    fn the_limits_of_a_kept_program_are_those_of_each_question() {
        let keep = |script: &str| {
            let mut kept = sh(&format!("echo end; {script}"))
                .keep(LONG, &Cancel::new())
                .unwrap();
            ask(&mut kept, "").unwrap();
            kept
        };
        let (short, cancel) = (Duration::from_millis(100), Cancel::new());
        let error = keep("exec sleep 1000").ask(b"", b"end\n", 10, short, &cancel);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Timeout);
        let error = keep("read -r line; yes").ask(b"\n", b"end\n", 10_000, LONG, &cancel);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("more than 10000 bytes"), "{error}");
        let mut kept = keep("exec sleep 1000");
        thread::scope(|scope| {
            let asked = scope.spawn(|| kept.ask(b"", b"end\n", 10, LONG, &cancel));
            cancel.cancel();
            assert_eq!(
                asked.join().unwrap().unwrap_err().kind(),
                ErrorKind::Cancelled
            );
        });
    }

    #[test]
    fn a_service_left_in_the_background_stays_and_does_not_hold_up_the_run() {
        let dir = tempfile::tempdir().unwrap();
        sh("sleep 1000 & echo $! > pid")
            .dir(dir.path())
            .run(LONG, &Cancel::new())
            .unwrap();
        let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
        assert!(alive(pid.trim()));
        let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }

    #[test]
    fn a_secret_file_is_readable_by_the_program_alone_and_not_in_its_arguments() {
        let program = sh("cat \"$1\"; stat -L -c ' %a' \"$1\"; tr '\\0' ' ' < /proc/$$/cmdline")
            .arg("sh")
            .secret_file_arg("", secret("hunter2 in a file"));
        let printed =
            String::from_utf8(program.output(b"", 1_000, LONG, &Cancel::new()).unwrap()).unwrap();
        let (content, rest) = printed.split_at("hunter2 in a file".len());
        assert_eq!(content, "hunter2 in a file");
        assert!(rest.starts_with(" 600"), "{rest}");
        assert!(!rest.contains("hunter2"), "{rest}");
        assert!(!format!("{program} {program:?}").contains("hunter2"));
    }

    #[test]
    fn the_environment_is_clean_and_its_secrets_stay_out_of_errors() {
        let program =
            sh("env; echo \"the password is $PW\" >&2; exit 1").env("PW", &secret("hunter2"));
        let mut running = program.spawn(LONG, &Cancel::new()).unwrap();
        let printed = running.exchange(b"", 100_000).unwrap();
        let printed = String::from_utf8_lossy(&printed);
        assert!(printed.contains("PATH=") && printed.contains("PW=hunter2"));
        assert!(
            !printed.contains("CARGO"),
            "what we were not asked to pass was passed: {printed}"
        );
        let error = running.wait().unwrap_err();
        assert!(
            error.to_string().contains("the password is [secret]"),
            "{error}"
        );
    }
}
