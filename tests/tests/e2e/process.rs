//! Starting the launcher, alone or under `mpirun`; time limits; ends that leave no process behind.

use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// No run of these tests needs a tenth of it, even on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The launcher of this tree, built now if it is not: cargo names no other package's binary to a test. Built with this
/// test's profile into this test's folder, so nothing is compiled twice.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // target/release/deps/e2e-0123 -> target/release
        let test = std::env::current_exe().unwrap();
        let folder = test.ancestors().nth(2).unwrap();
        let profile = match folder.file_name().and_then(|name| name.to_str()).unwrap() {
            "debug" => "dev",
            name => name,
        };
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "-p", "launcher", "--profile", profile])
            .arg("--target-dir")
            .arg(folder.parent().unwrap())
            .current_dir(root())
            .status()
            .unwrap();
        assert!(status.success(), "cargo could not build the launcher");
        let binary = folder.join("launcher");
        assert!(binary.is_file(), "no launcher at {}", binary.display());
        binary
    })
}

/// How a process ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; 128 + n after signal n.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    what: String,
}

impl Ended {
    /// Stops the test unless the process ended with `code`.
    #[track_caller]
    pub(crate) fn must(self, code: i32) -> Self {
        assert!(
            self.code == code,
            "`{}` ended with {} instead of {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.what,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Stops the test unless all `texts` were said on standard error.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "`{}` did not say {text:?}\n--- stderr\n{}",
                self.what,
                self.stderr
            );
        }
        self
    }
}

/// A command to come.
#[derive(Debug)]
pub(crate) struct Start {
    command: Command,
    what: String,
}

impl Start {
    /// The launcher in one process; `ranks` > 0: that many under `mpirun`. `folder` is where it works and logs.
    pub(crate) fn new(folder: &Path, ranks: usize, args: &[&str]) -> Self {
        let mut command;
        if ranks == 0 {
            command = Command::new(binary());
        } else {
            // The one place that knows what mpirun needs on one machine is scripts/mpi-env.
            command = Command::new("bash");
            command.args(["-c", "source \"$0\" && exec mpirun \"$@\""]);
            command.arg(root().join("scripts/mpi-env"));
            command.args(["-n", &ranks.to_string()]).arg(binary());
        }
        command.args(args).current_dir(folder).stdin(Stdio::null()).process_group(0);
        command.env("MYRIAD_CACHE", folder.join("cache"));
        let mpirun = if ranks == 0 { String::new() } else { format!("mpirun -n {ranks} ") };
        Self { command, what: format!("{mpirun}launcher {}", args.join(" ")) }
    }

    pub(crate) fn env(mut self, name: &str, value: &Path) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts it. What it says goes to files: a pipe would stay open as long as any descendant lives.
    pub(crate) fn start(mut self) -> Running {
        let said = tempfile::tempdir().unwrap();
        let file = |name| File::create(said.path().join(name)).unwrap();
        self.command.stdout(file("stdout")).stderr(file("stderr"));
        let child = self.command.spawn().unwrap();
        Running { child, said, what: self.what, started: Instant::now(), over: false }
    }

    /// Starts it and waits for its end.
    pub(crate) fn run(self) -> Ended {
        self.start().end()
    }
}

/// A process under way; dropped before its end, it is killed with its ranks.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    said: tempfile::TempDir,
    what: String,
    started: Instant,
    over: bool,
}

impl Running {
    /// Waits for the end.
    pub(crate) fn end(mut self) -> Ended {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            let text = |name| self.read(name);
            assert!(
                self.started.elapsed() < LIMIT,
                "`{}` is still running after {LIMIT:?}\n--- stdout\n{}\n--- stderr\n{}",
                self.what,
                text("stdout"),
                text("stderr")
            );
            std::thread::sleep(LOOK_EVERY);
        };
        self.over = true;
        Ended {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap()),
            stdout: self.read("stdout"),
            stderr: self.read("stderr"),
            what: self.what.clone(),
        }
    }

    /// Waits until `condition` holds, or the process is over: false.
    pub(crate) fn until(&mut self, condition: &dyn Fn() -> bool) -> bool {
        while !condition() {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(self.started.elapsed() < LIMIT, "`{}`: waited in vain", self.what);
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }

    /// Sends a signal to the process that was started.
    pub(crate) fn signal(&self, name: &str) {
        send(name, self.child.id());
    }

    /// Process ids of the ranks: the children of `mpirun`, in the order of starting.
    pub(crate) fn ranks(&self) -> Vec<u32> {
        let mut ranks: Vec<u32> = children(self.child.id());
        ranks.sort_unstable();
        ranks
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.said.path().join(name)).unwrap()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            let ranks = self.ranks();
            let _ = self.child.kill();
            let _ = self.child.wait();
            ranks.into_iter().for_each(|rank| send("KILL", rank));
        }
    }
}

/// Sends a signal; a process that is gone is no error.
pub(crate) fn send(name: &str, pid: u32) {
    let mut kill = Command::new("bash");
    kill.args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()]).stderr(Stdio::null());
    kill.status().unwrap();
}

/// Whether a process is there and no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

fn children(of: u32) -> Vec<u32> {
    let task = format!("/proc/{of}/task");
    let Ok(threads) = std::fs::read_dir(task) else { return Vec::new() };
    let lists =
        threads.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("children")).ok());
    lists
        .flat_map(|l| l.split_whitespace().map(|p| p.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}
