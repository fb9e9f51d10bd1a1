//! Users written to a folder that appears whole or not at all.

use super::layout::Kind;
use crate::cli::PrepareArgs;
use crate::exit::Fails;
use anyhow::Context;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use trainer::data::lamp::{LampFiles, OppuFiles, QuestionIds, WriteError, write_lamp, write_oppu};
use trainer::data::{LampTask, Records, Role, UserRecord, jsonl};
use trainer::store::fs::{AtomicFile, RealFs};

/// Bytes gathered before they are written.
const GATHERED_BYTES: usize = 1 << 18;

/// Where users go.
pub(super) struct Output {
    kind: Kind,
    ids: QuestionIds,
    part: Part,
}

impl Output {
    /// Prepares `--to KIND --out DIR`; nothing without them.
    ///
    /// # Errors
    /// An unknown kind, a folder that is there already.
    pub(super) fn begin(args: &PrepareArgs) -> anyhow::Result<Option<Self>> {
        // The command line lets neither through alone.
        let (Some(kind), Some(out)) = (&args.to, &args.out) else { return Ok(None) };
        let kind = Kind::to_write(kind)?;
        let ids = if args.ids_with_user { QuestionIds::WithUser } else { QuestionIds::Own };
        Ok(Some(Self { kind, ids, part: Part::begin(out)? }))
    }

    /// Writes the users of a role; none, no file.
    pub(super) fn write(
        &self,
        role: Role,
        task: Option<LampTask>,
        users: Records<'_>,
    ) -> anyhow::Result<()> {
        let mut users = users.peekable();
        // The files beside the users' are there for all of them or none: the first one tells.
        let (profile, answer) = match users.peek() {
            None => return Ok(()),
            Some(Ok(user)) => (user.profile.is_some(), is_answered(user, task)),
            Some(Err(_)) => (false, false),
        };
        let names = self.kind.names(role, task);
        let file = |name: &str, wanted: bool| {
            let path = Some(self.part.folder.join(name)).filter(|_| wanted && !name.is_empty());
            path.map(|path| File::begin(&path)).transpose()
        };
        let mut main = file(names.users, true)?.context("a kind without a file of users")?;
        let mut answers = file(names.answers, answer)?;
        let mut profiles = file(names.profiles, profile)?;
        let (beside, about) = (dynamic(&mut answers), dynamic(&mut profiles));
        let needed = || task.context("the files are written for a task").input("give --task");
        match self.kind {
            Kind::Jsonl => {
                for user in users {
                    jsonl::write_user(&mut main.0, &user.input("the data changed")?)?;
                }
            }
            Kind::Lamp => {
                let files = LampFiles { questions: &mut main.0, outputs: beside, profiles: about };
                write_lamp(needed()?, users, self.ids, files).map_err(cannot)?;
            }
            Kind::Oppu => {
                let files = OppuFiles { users: &mut main.0, labels: beside, profiles: about };
                write_oppu(needed()?, users, self.ids, files).map_err(cannot)?;
            }
        }
        [Some(main), answers, profiles].into_iter().flatten().try_for_each(File::commit)
    }

    /// Puts the folder under its name and says which.
    pub(super) fn commit(self) -> anyhow::Result<PathBuf> {
        self.part.commit()
    }
}

fn cannot(error: WriteError) -> anyhow::Error {
    let hint = match &error {
        WriteError::Io(_) => return error.into(),
        WriteError::DuplicateQuestion { .. } => "--ids-with-user writes USER:QUERY as the id",
        WriteError::NoQueries { .. } => "--min-queries 1 leaves such users out",
        _ => "docs/guides/data.md says what the kind's files must have",
    };
    let failed: anyhow::Result<()> = Err(error).input(hint);
    failed.err().unwrap_or_else(|| anyhow::anyhow!("writing failed"))
}

fn is_answered(user: &UserRecord, task: Option<LampTask>) -> bool {
    let field = task.and_then(LampTask::answer_field).unwrap_or("gold");
    let first = user.queries.first();
    first.is_some_and(|query| query.field("gold").or_else(|| query.field(field)).is_some())
}

fn dynamic(file: &mut Option<File>) -> Option<&mut dyn Write> {
    file.as_mut().map(|file| -> &mut dyn Write { &mut file.0 })
}

/// A file that appears when it is whole.
pub(super) struct File(pub(super) io::BufWriter<Bytes>);

pub(super) struct Bytes(AtomicFile<'static>);

impl io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl File {
    pub(super) fn begin(path: &Path) -> anyhow::Result<Self> {
        let file = AtomicFile::begin(&RealFs, path)
            .with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Self(io::BufWriter::with_capacity(GATHERED_BYTES, Bytes(file))))
    }

    pub(super) fn commit(mut self) -> anyhow::Result<()> {
        self.0.flush()?;
        let bytes = self.0.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(bytes.0.commit()?)
    }
}

/// A folder beside the one asked for, which takes its name at the end; dropped before, it goes.
pub(super) struct Part {
    pub(super) folder: PathBuf,
    out: PathBuf,
    done: bool,
}

impl Part {
    pub(super) fn begin(out: &Path) -> anyhow::Result<Self> {
        let out = std::path::absolute(out)?;
        let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else {
            return Err(anyhow::anyhow!("{} is no new folder", out.display()))
                .input("--out names a folder that does not exist yet");
        };
        if out.symlink_metadata().is_ok() {
            return Err(anyhow::anyhow!("{} exists already", out.display()))
                .input("nothing is overwritten: remove it or name another folder");
        }
        let folder =
            parent.join(format!(".{}.part-{}", name.to_string_lossy(), std::process::id()));
        fs::create_dir_all(parent)
            .and_then(|()| fs::create_dir(&folder))
            .map_err(|e| anyhow::anyhow!("{}: {e}", folder.display()))
            .input("--out names a folder where one may write")?;
        Ok(Self { folder, out, done: false })
    }

    pub(super) fn commit(mut self) -> anyhow::Result<PathBuf> {
        let renamed = fs::rename(&self.folder, &self.out);
        renamed.with_context(|| format!("{} cannot be put there", self.out.display()))?;
        self.done = true;
        Ok(self.out.clone())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.done {
            // Best effort: the command has failed already and says why.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}
