//! The configuration file that a command uses.
//!
//! Promise: `--config`, before or after the command, comes first, then `FOREBAY_CONFIG`, then `./forebay.toml`, then that
//! of the package. A file that another user has put into the working folder is never taken by itself.

use clap::Args;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Place of the configuration in the package.
const OF_PACKAGE: &str = "/etc/forebay/forebay.toml";
/// Name that is looked for in the working folder.
const HERE: &str = "forebay.toml";

#[derive(Clone, Debug, Args)]
pub(super) struct ConfigFile {
    /// Configuration file [default: ./forebay.toml if it exists, else /etc/forebay/forebay.toml]
    #[arg(
        id = "config",
        short = 'c',
        long,
        value_name = "FILE",
        global = true,
        env = "FOREBAY_CONFIG",
        hide_env_values = true,
        default_value_os_t = default(),
        hide_default_value = true
    )]
    path: PathBuf,
}

impl Deref for ConfigFile {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

fn default() -> PathBuf {
    if is_own(Path::new(HERE)) { HERE.into() } else { OF_PACKAGE.into() }
}

/// Returns whether a file belongs to the user of this process or to root. In a folder such as `/tmp`, anybody may leave a file.
fn is_own(file: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    std::fs::metadata(file).is_ok_and(|found| found.is_file() && (found.uid() == user || found.uid() == 0))
}
