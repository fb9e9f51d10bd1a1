//! Exit codes, and errors that carry one.

use std::fmt;
use std::process::ExitCode;

/// How the launcher ends. `2` is the command line's own code for wrong usage, `101` a panic's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// Config or data are wrong.
    Input = 3,
    /// A verification failed.
    Verification = 4,
    /// Done, but some users were put aside.
    Quarantined = 5,
    /// Stopped on a signal with everything finished so far committed: run the same command again.
    Requeue = 75,
    /// A bug, or the machine failed us.
    Internal = 101,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Marks an error with the code to exit with and a hint for the person.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) hint: Option<&'static str>,
    error: anyhow::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

impl std::error::Error for Failure {}

/// Gives errors a code and a hint on their way up.
pub(crate) trait Fails<T> {
    /// Wrong config or data.
    fn input(self, hint: &'static str) -> anyhow::Result<T>;
    /// The machine failed us, and a person can look into it.
    fn machine(self, hint: &'static str) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Fails<T> for Result<T, E> {
    fn input(self, hint: &'static str) -> anyhow::Result<T> {
        self.map_err(|e| Failure { exit: Exit::Input, hint: Some(hint), error: e.into() }.into())
    }

    fn machine(self, hint: &'static str) -> anyhow::Result<T> {
        self.map_err(|e| Failure { exit: Exit::Internal, hint: Some(hint), error: e.into() }.into())
    }
}

/// Code and hint of an error; without a mark it is the machine's or our own failure.
pub(crate) fn read(error: &anyhow::Error) -> (Exit, Option<&'static str>) {
    error
        .chain()
        .find_map(|e| e.downcast_ref::<Failure>())
        .map_or((Exit::Internal, None), |f| (f.exit, f.hint))
}
