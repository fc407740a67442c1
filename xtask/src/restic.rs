//! The stock restic program, to read what we write and to write what we must read.
//!
//! The password goes through a file of mode 0600, the cache lives and dies with the value: nothing of the caller's own
//! restic settings is used.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::init::Init;

/// One repository as restic sees it.
#[derive(Debug)]
pub struct Restic {
    program: PathBuf,
    repository: OsString,
    options: Vec<OsString>,
    access_key: Option<[String; 2]>,
    scratch: TempDir,
}

impl Restic {
    /// The repository at a location in restic's syntax: a local path, `sftp:…` (see [`Restic::sftp_command`]) or `s3:…` (see [`Restic::access_key`]).
    pub fn new(repository: impl Into<OsString>, password: &str) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let restic = Self {
            program: "restic".into(),
            repository: repository.into(),
            options: Vec::new(),
            access_key: None,
            scratch,
        };
        fs::create_dir(restic.cache())?;
        fs::write(restic.password_file(), password)?;
        fs::set_permissions(restic.password_file(), Permissions::from_mode(0o600))?;
        Ok(restic)
    }

    /// Another restic than the one in `PATH`.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = program.into();
        self
    }

    /// The command that reaches the SFTP server, as in `-o sftp.command=…`.
    #[must_use]
    pub fn sftp_command(mut self, command: &str) -> Self {
        self.options.push("-o".into());
        self.options.push(format!("sftp.command={command}").into());
        self
    }

    /// The access key of the object store.
    #[must_use]
    pub fn access_key(mut self, id: &str, secret: &str) -> Self {
        self.access_key = Some([id, secret].map(str::to_owned));
        self
    }

    /// The file that holds the password.
    pub fn password_file(&self) -> PathBuf {
        self.scratch.path().join("password")
    }

    fn cache(&self) -> PathBuf {
        self.scratch.path().join("cache")
    }

    /// `restic ARGUMENTS`, ready to run: for tests that look at the exit code or run it beside something else.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.program);
        let own_settings = std::env::vars_os().map(|(name, _)| name);
        for name in own_settings.filter(|name| name.to_string_lossy().starts_with("RESTIC_")) {
            command.env_remove(name);
        }
        command
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("RESTIC_PASSWORD_FILE", self.password_file())
            .env("RESTIC_CACHE_DIR", self.cache())
            .args(&self.options)
            .args(arguments)
            .stdin(Stdio::null());
        if let Some([id, secret]) = &self.access_key {
            command
                .env("AWS_ACCESS_KEY_ID", id)
                .env("AWS_SECRET_ACCESS_KEY", secret);
        }
        command
    }

    /// Run restic to its end; a failure tells its exit code and what it said.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Output> {
        let mut command = self.command(arguments);
        let output = command
            .output()
            .context("cannot run restic: is it installed?")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
            bail!(
                "restic {} failed ({}): {}",
                arguments.join(" "),
                output.status,
                said.trim()
            );
        }
        Ok(output)
    }

    fn json<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Value> {
        let output = self.run(arguments)?;
        serde_json::from_slice(&output.stdout).context("restic printed something else than JSON")
    }

    /// Create the repository, in format version 2; of those in directories the first for real ([`Init`]).
    pub fn init(&self) -> Result<()> {
        static INIT: Init = Init::new();
        let init = || self.run(["init", "--repository-version", "2"]).map(drop);
        let directory = Path::new(&self.repository);
        if !directory.is_absolute() || self.program != Path::new("restic") {
            return init();
        }
        let password = fs::read_to_string(self.password_file())?;
        INIT.make(&[(directory, &password)], init)
    }

    /// Read everything in the repository; anything that restic has to say about it is an error.
    pub fn check_read_data(&self) -> Result<()> {
        let output = self.run(["check", "--read-data"])?;
        let (said, complained) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(
            said.contains("no errors were found"),
            "restic check is not content: {said}{complained}"
        );
        ensure!(
            complained.trim().is_empty(),
            "restic check complains: {complained}"
        );
        Ok(())
    }

    /// All snapshots as `restic snapshots --json` shows them, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Value>> {
        match self.json(["snapshots", "--json"])? {
            Value::Array(snapshots) => Ok(snapshots),
            // No snapshots at all.
            Value::Null => Ok(Vec::new()),
            other => bail!("restic snapshots printed {other}"),
        }
    }

    /// Back up the paths under the tags; the id of the snapshot.
    pub fn backup<P: AsRef<Path>>(
        &self,
        paths: impl IntoIterator<Item = P>,
        tags: &[&str],
    ) -> Result<String> {
        self.backup_with(paths, tags, &[])
    }

    /// The same, with more options.
    pub fn backup_with<P: AsRef<Path>>(
        &self,
        paths: impl IntoIterator<Item = P>,
        tags: &[&str],
        options: &[&str],
    ) -> Result<String> {
        let mut arguments: Vec<OsString> = vec!["backup".into(), "--json".into()];
        arguments.extend(options.iter().map(OsString::from));
        arguments.extend(tags.iter().flat_map(|tag| ["--tag".into(), tag.into()]));
        arguments.extend(paths.into_iter().map(|path| path.as_ref().into()));
        let output = self.run(arguments)?;
        // One JSON document a line; the last one is the summary.
        let last = output
            .stdout
            .trim_ascii_end()
            .rsplit(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        let summary: Value =
            serde_json::from_slice(last).context("restic backup printed no summary")?;
        let id = summary["snapshot_id"]
            .as_str()
            .context("restic backup printed no snapshot id")?
            .to_owned();
        // restic 0.14 prints the short id.
        let snapshots = self.snapshots()?;
        let ids = snapshots
            .iter()
            .filter_map(|snapshot| snapshot["id"].as_str());
        ids.into_iter()
            .find(|full| full.starts_with(&id))
            .map(str::to_owned)
            .context("restic lost its snapshot")
    }

    /// Restore a snapshot below `target`, at its full paths, and verify what was written.
    pub fn restore(&self, snapshot: &str, target: &Path) -> Result<()> {
        let output = self.run([
            OsStr::new("restore"),
            snapshot.as_ref(),
            "--target".as_ref(),
            target.as_ref(),
            "--verify".as_ref(),
        ])?;
        // restic 0.14 ends well in spite of some errors.
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(
            complained.trim().is_empty(),
            "restic restore complains: {complained}"
        );
        Ok(())
    }

    /// The bytes of one file of a snapshot.
    pub fn dump(&self, snapshot: &str, path: &str) -> Result<Vec<u8>> {
        Ok(self.run(["dump", snapshot, path])?.stdout)
    }

    /// The nodes of a snapshot as `restic ls --json` shows them, the line about the snapshot itself left out.
    pub fn list(&self, snapshot: &str) -> Result<Vec<Value>> {
        let output = self.run(["ls", "--json", snapshot])?;
        let lines = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .skip(1);
        lines
            .map(|line| Ok(serde_json::from_slice(line)?))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{add_privileged_entries, assert_same_tree, build_nasty_tree};

    #[test]
    fn restic_brings_the_nasty_tree_back() {
        let scratch = tempfile::tempdir().unwrap();
        let tree = scratch.path().join("tree");
        build_nasty_tree(&tree).unwrap();
        add_privileged_entries(&tree).unwrap();
        let restic = Restic::new(scratch.path().join("repository"), "a password").unwrap();
        restic.init().unwrap();
        assert!(restic.snapshots().unwrap().is_empty());

        let id = restic.backup([&tree], &["customer-1", "manual"]).unwrap();
        restic.check_read_data().unwrap();
        let snapshots = restic.snapshots().unwrap();
        assert_eq!(snapshots.len(), 1);
        assert_eq!(snapshots[0]["id"], id.as_str());
        assert_eq!(
            snapshots[0]["tags"],
            serde_json::json!(["customer-1", "manual"])
        );

        let target = scratch.path().join("target");
        restic.restore(&id, &target).unwrap();
        assert_same_tree(&tree, target.join(tree.strip_prefix("/").unwrap()));
        let path = tree.join("links/file");
        assert_eq!(
            restic.dump(&id, path.to_str().unwrap()).unwrap(),
            b"three names"
        );
        assert!(
            restic
                .list(&id)
                .unwrap()
                .iter()
                .any(|node| node["path"] == path.to_str().unwrap())
        );
    }

    #[test]
    fn a_wrong_password_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        Restic::new(scratch.path(), "right")
            .unwrap()
            .init()
            .unwrap();
        let error = Restic::new(scratch.path(), "wrong")
            .unwrap()
            .snapshots()
            .unwrap_err();
        assert!(error.to_string().contains("wrong password"), "{error}");
    }
}
