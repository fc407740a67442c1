//! Services of systemd started by hand, where there is no systemd: as the user, with the rights and in the file system that their units
//! say, as far as other programs can do that. Filters of system calls and of addresses are left to systemd itself.
//!
//! Never: a service started with more rights than its unit gives it.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::host::{Host, PATH};

/// Puts a process of its own into the file system of a service, and becomes that.
const SANDBOX: &str = r#"
writable=" $WRITABLE " hidden=$HIDDEN homes=$HOMES mask=$MASK
unset WRITABLE HIDDEN HOMES MASK
for path in $writable; do mount --bind "$path" "$path"; done
while read -r _ _ _ _ point _; do
    case $writable in *" $point "*) continue ;; esac
    case $point in /proc | /proc/* | /sys | /sys/* | /dev | /dev/*) continue ;; esac
    # Those of others come and go meanwhile.
    mount -o remount,bind,ro "$point" 2>/dev/null || :
done </proc/self/mountinfo
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=1777 tmp /var/tmp
: >/tmp/nothing
chmod 000 /tmp/nothing
for path in $hidden; do
    if [ -d "$path" ]; then mount -t tmpfs -o mode=000,ro nothing "$path"
    elif [ -e "$path" ]; then mount --bind /tmp/nothing "$path"
    fi
done
rm /tmp/nothing
if [ "$homes" = yes ]; then
    for path in /root /home /run/user; do
        [ ! -d "$path" ] || mount -t tmpfs -o mode=000,ro nothing "$path"
    done
fi
cd /
umask "$mask"
exec setpriv "$@"
"#;

/// What a unit says of its service.
#[derive(Debug, Clone)]
pub struct Unit {
    settings: Vec<(String, String)>,
}

impl Unit {
    /// The unit of this name, as it is installed on the host.
    pub fn installed(host: &Host, name: &str) -> Result<Self> {
        Ok(Self::parse(
            &host.read(&format!("/etc/systemd/system/{name}"))?,
        ))
    }

    /// Of its text.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with(['#', ';']));
        let settings = lines.filter_map(|line| line.split_once('='));
        Self {
            settings: settings
                .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
                .collect(),
        }
    }

    /// The words of all lines of this key.
    pub fn words(&self, key: &str) -> Vec<&str> {
        let lines = self.settings.iter().filter(|(found, _)| found == key);
        lines
            .flat_map(|(_, value)| value.split_whitespace())
            .collect()
    }

    fn is(&self, key: &str, value: &str) -> bool {
        self.words(key) == [value]
    }

    /// The service, ready to be started.
    pub fn command(&self, host: &Host) -> Result<Command> {
        self.command_of(host, &self.words("ExecStart"))
    }

    /// Another program in its place.
    pub fn command_of(&self, host: &Host, words: &[&str]) -> Result<Command> {
        for (key, value) in [("ProtectSystem", "strict"), ("PrivateTmp", "yes")] {
            ensure!(
                self.is(key, value),
                "only units with {key}={value} are understood"
            );
        }
        let [user] = self.words("User")[..] else {
            anyhow::bail!("the unit names no user")
        };
        let mut writable = Vec::new();
        for name in self.words("StateDirectory") {
            let directory = format!("/var/lib/{name}");
            let mode = self.words("StateDirectoryMode").concat();
            let made = host
                .command("install")
                .args(["-d", "-m", &mode, &directory])
                .status()?;
            ensure!(made.success(), "{directory} cannot be made");
            writable.push(directory);
        }
        writable.extend(self.words("ReadWritePaths").into_iter().map(str::to_owned));
        let hidden: Vec<_> = self
            .words("InaccessiblePaths")
            .into_iter()
            .map(|path| path.trim_start_matches('-'))
            .collect();
        let rights: String = self
            .words("CapabilityBoundingSet")
            .into_iter()
            .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
            .collect();
        let mut command = host.command("unshare");
        command
            .args(["--mount", "--propagation", "private", "--"])
            .args(["sh", "-e", "-c", SANDBOX, "sh"])
            .args(["--pdeathsig", "KILL", "--inh-caps", "-all"])
            .arg(format!("--bounding-set=-all{rights}"));
        if self.is("NoNewPrivileges", "yes") {
            command.arg("--no-new-privs");
        }
        if user != "root" {
            let group = self.words("Group").concat();
            command
                .arg(format!("--reuid={user}"))
                .arg(format!("--regid={group}"))
                .arg("--clear-groups");
        }
        command.args(words);
        command
            .env("WRITABLE", writable.join(" "))
            .env("HIDDEN", hidden.join(" "))
            .env("HOMES", self.words("ProtectHome").concat())
            .env("MASK", self.words("UMask").concat())
            .env("PATH", PATH)
            .envs(self.environment(host, user)?);
        Ok(command)
    }

    /// What systemd says of the user, and what is in the files that the unit names.
    fn environment(&self, host: &Host, user: &str) -> Result<Vec<(String, String)>> {
        let account = host.shell("/", &format!("getent passwd {user}"))?;
        let home = account.split(':').nth(5).context("no such account")?;
        let mut found: Vec<_> = [("USER", user), ("LOGNAME", user), ("HOME", home)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        for file in self.words("EnvironmentFile") {
            let text = host.read(file.trim_start_matches('-'))?;
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            found.extend(
                lines
                    .filter_map(|line| line.split_once('='))
                    .map(|(name, value)| (name.to_owned(), value.to_owned())),
            );
        }
        Ok(found)
    }
}
