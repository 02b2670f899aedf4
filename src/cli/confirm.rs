//! Questions before a command does something that cannot be undone.
//!
//! Invariant: a command never waits for an answer that nobody can give: without a terminal there is no question.

use anyhow::bail;
use std::io::{IsTerminal, Write};

/// Asks a question at a terminal. A program that runs the command is not asked.
pub(super) fn confirm_at_terminal(question: &str, is_confirmed: bool) -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() { confirm(question, is_confirmed) } else { Ok(()) }
}

/// Asks a question with yes or no. Fails unless the answer is yes, and without a terminal.
pub(super) fn confirm(question: &str, is_confirmed: bool) -> anyhow::Result<()> {
    if is_confirmed {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("{question} Use --yes to confirm it");
    }
    let mut out = std::io::stderr().lock();
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        bail!("nothing was changed");
    }
    Ok(())
}
