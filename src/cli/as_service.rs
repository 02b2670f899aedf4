//! A check of the configuration as the user of the service, when root asks.
//!
//! Promise: what the service may not read or write is a problem also for root, who may read and write everything.

use super::new_files::Owner;
use crate::setting::Problem;
use serde::Deserialize;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The output of `forebay check --json`.
#[derive(Debug, Deserialize)]
struct Answer {
    problems: Vec<Said>,
}

#[derive(Debug, Deserialize)]
struct Said {
    file: PathBuf,
    line: usize,
    key: String,
    message: String,
}

/// Runs `forebay check` as the user of the service. Returns its problems; `None` if this process is not root, or root is
/// the user of the service. The error says why it could not be run.
pub(super) fn problems(file: &Path) -> Option<Result<Vec<Problem>, String>> {
    let owner = Owner::of_service(file)?;
    Some(run(file, &owner))
}

fn run(file: &Path, owner: &Owner) -> Result<Vec<Problem>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let file = std::path::absolute(file).map_err(|error| error.to_string())?;
    // Setting the user also drops the groups of root.
    let mut command = Command::new(program);
    command.args(["check", "--json"]).arg(&file).env_remove("FOREBAY_CONFIG").current_dir("/");
    let output = command.gid(owner.gid()).uid(owner.uid()).output().map_err(|error| error.to_string())?;
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| String::from_utf8_lossy(&output.stderr).trim().to_owned())?;
    let user = owner.name();
    let problems = answer.problems.into_iter().map(|said| Problem {
        file: said.file,
        line: said.line,
        key: said.key,
        message: format!("{} (as user {user}, who runs the service)", said.message),
    });
    Ok(problems.collect())
}
