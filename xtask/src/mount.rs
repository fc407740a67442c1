//! Something mounted for a test, such as a disk that can be full. Takes the right to mount.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Result, ensure};

/// A mount. Dropping it unmounts, also while something of it is in use.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// A file system in memory over a directory, with these options: `size=4m,mode=755`.
    pub fn tmpfs(place: &Path, options: &str) -> Result<Self> {
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs"];
        mount(Command::new("mount").args(arguments).arg(place))?;
        Ok(Self(place.to_owned()))
    }

    /// A file or a directory that is there already, over another one.
    pub fn bind(what: &Path, place: &Path) -> Result<Self> {
        mount(Command::new("mount").arg("--bind").args([what, place]))?;
        Ok(Self(place.to_owned()))
    }

    /// A file that holds a file system, by a loop device.
    pub fn image(image: &Path, place: &Path) -> Result<Self> {
        mount(
            Command::new("mount")
                .args(["-o", "loop"])
                .args([image, place]),
        )?;
        Ok(Self(place.to_owned()))
    }

    /// Change its options: `ro`, `size=200m`.
    pub fn remount(&self, options: &str) -> Result<()> {
        let options = format!("remount,{options}");
        mount(Command::new("mount").args(["-o", &options]).arg(&self.0))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn mount(command: &mut Command) -> Result<()> {
    ensure!(command.status()?.success(), "this takes the right to mount");
    Ok(())
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || thread::panicking());
    }
}
