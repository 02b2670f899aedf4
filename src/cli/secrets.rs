//! Commands that store secrets of clients: `forebay user` and `forebay token`; input of secrets at the terminal.
//!
//! Promise: a secret is not shown while it is typed, and its memory is cleared.

use crate::sources::http::put_token;
use crate::sources::mqtt::put_user;
use anyhow::bail;
use clap::Subcommand;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use zeroize::Zeroizing;

#[derive(Debug, Subcommand)]
pub(super) enum User {
    /// Add a user or set a new password, read from the terminal or the first line of standard input
    Add {
        /// Password file of the listener
        #[arg(long)]
        file: PathBuf,
        /// Name of the user to add
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Create a token for a name, replacing an earlier one, and print it; only its hash is stored
    Add {
        /// Token file of the source
        #[arg(long)]
        file: PathBuf,
        /// Name of the caller: the only {source} for which it may post
        name: String,
    },
}

pub(super) fn add_user(User::Add { file, name }: &User) -> anyhow::Result<ExitCode> {
    let password = read_password(name)?;
    put_user(file, name, password.as_bytes())?;
    writeln!(
        std::io::stdout(),
        "user \"{name}\" is in {}; a running gateway uses it from the next login on",
        file.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn add_token(Token::Add { file, name }: &Token) -> anyhow::Result<ExitCode> {
    println!("{}", put_token(file, name)?);
    eprintln!("this is the token of \"{name}\", shown once; its hash is in {}", file.display());
    Ok(ExitCode::SUCCESS)
}

fn read_password(name: &str) -> anyhow::Result<Zeroizing<String>> {
    let password = read_secret(&format!("Password for \"{name}\": "))?;
    if password.len() < 8 {
        bail!("the password has {} characters; at least 8 are needed", password.chars().count());
    }
    Ok(password)
}

/// Reads a line from the terminal without showing it, or the first line of the input.
pub(super) fn read_secret(prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    let input = std::io::stdin();
    // Large enough for any password: a growing buffer would leave copies in freed memory.
    let mut line = Zeroizing::new(String::with_capacity(1024));
    if input.is_terminal() {
        eprint!("{prompt}");
        let hidden = hide_typing()?;
        let read = input.lock().read_line(&mut line);
        drop(hidden);
        eprintln!();
        read?;
    } else {
        input.lock().read_line(&mut line)?;
    }
    Ok(Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Turns the terminal echo off until the returned value is dropped.
fn hide_typing() -> anyhow::Result<impl Drop> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    struct Restore(rustix::termios::Termios);
    impl Drop for Restore {
        fn drop(&mut self) {
            // Fails only if the terminal is gone.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
        }
    }
    let before = tcgetattr(std::io::stdin())?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(std::io::stdin(), OptionalActions::Now, &quiet)?;
    Ok(Restore(before))
}
