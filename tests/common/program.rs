//! Runs commands of the program, as a person would.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_forebay");

/// Runs a command in a folder, without a terminal.
pub fn forebay(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.current_dir(folder).args(arguments).env_remove("FOREBAY_CONFIG").stdin(Stdio::null());
    command.output().expect("runs")
}

/// The output of a command, with its errors.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command that succeeds; returns its output.
#[track_caller]
pub fn good(folder: &Path, arguments: &[&str]) -> String {
    let output = forebay(folder, arguments);
    let text = said(&output);
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[track_caller]
pub fn assert_has(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "\"{word}\" is missing in: {text}"));
}
