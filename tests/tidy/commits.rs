//! The form of commits.

use super::source::root;
use crate::common::need::Need;
use std::process::Command;

/// Commits up to this one are older than the rule.
const BEGINNING: &str = "8b845cd";

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_commit_has_a_short_subject_and_says_why_it_changes_src() {
    // A package of the sources has no history.
    if !Need::Git.is_met(git(&["rev-parse", "HEAD"]).is_some(), "git, and a clone") {
        return;
    }
    // In a shallow clone the history may begin later than the rule.
    let is_known = git(&["cat-file", "-e", &format!("{BEGINNING}^{{commit}}")]).is_some();
    let is_shallow = git(&["rev-parse", "--is-shallow-repository"]).is_some_and(|answer| answer.trim() == "true");
    assert!(is_known || is_shallow, "there is no commit {BEGINNING}; BEGINNING names the last one without the rule");
    let range = if is_known { format!("{BEGINNING}..HEAD") } else { "HEAD".to_owned() };
    // One record for each commit: hash, parents, subject, body, files.
    let form = "--format=%x01%h%x02%p%x02%s%x02%b%x02";
    let log = git(&["log", "--no-merges", "--name-only", form, &range]).expect("git log");
    let mut wrong = Vec::new();
    for commit in log.split('\u{1}').skip(1) {
        let parts: Vec<&str> = commit.split('\u{2}').collect();
        let [hash, parents, subject, body, files] = parts[..] else { panic!("{commit}") };
        let length = subject.chars().count();
        if length > 72 {
            wrong.push(format!("{hash}: the subject has {length} characters, of at most 72: {subject}"));
        }
        // The first commit of a shallow clone seems to add every file.
        let changes_src = !parents.is_empty() && files.lines().any(|file| file.starts_with("src/"));
        if changes_src && body.trim().is_empty() {
            wrong.push(format!("{hash}: it changes src and has no body that says why: {subject}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
