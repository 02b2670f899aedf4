//! Commands that store secrets of clients: `forebay user` and `forebay token`; input of secrets at the terminal.
//!
//! Promise: a secret is not shown while it is typed, and its memory is cleared.

use super::config_file::ConfigFile;
use super::confirm::confirm_at_terminal;
use crate::config::Config;
use crate::sources::SourceConfig;
use crate::sources::http::{Tokens, put_token, remove_token};
use crate::sources::mqtt::{Users, put_user, remove_user};
use crate::telemetry::shown;
use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use zeroize::Zeroizing;

/// A file of users or tokens.
#[derive(Debug, Args)]
pub(super) struct SecretsFile {
    /// The file [default: the one that the configuration names, if it names only one]
    #[arg(long)]
    file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFile,
}

/// A name that is in a file of users or tokens, or shall be.
#[derive(Debug, Args)]
pub(super) struct Named {
    /// The name
    name: String,
    #[command(flatten)]
    place: SecretsFile,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example: forebay user add press-4 --file devices.passwd <press-4.password")]
pub(super) enum User {
    /// Add a user or set a new password, read from the terminal or the first line of standard input
    Add(Named),
    /// List the users of a listener
    List(SecretsFile),
    /// Remove a user; a running gateway disconnects it within seconds
    Remove {
        #[command(flatten)]
        user: Named,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example: forebay token add mes --file programs.tokens")]
pub(super) enum Token {
    /// Create a token for a name, replacing an earlier one, and print it; only its hash is stored
    Add(Named),
    /// List the names that have a token
    List(SecretsFile),
    /// Remove the token of a name
    Remove {
        #[command(flatten)]
        token: Named,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

impl SecretsFile {
    /// Returns the file, or the only one that a source of the configuration names.
    fn path(&self, of: fn(&SourceConfig) -> Option<&PathBuf>, key: &str) -> anyhow::Result<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let config = Config::load(&self.config).map_err(|problems| {
            let first = problems.first().map(ToString::to_string).unwrap_or_default();
            anyhow!("name the file with --file: the configuration cannot be read ({first})")
        })?;
        let mut found: Vec<_> = config.sources.iter().filter_map(of).collect();
        found.dedup();
        match found[..] {
            [file] => Ok(file.clone()),
            [] => bail!("no source of {} has {key}; name the file with --file", self.config.display()),
            _ => bail!("several sources of {} have {key}; name the file with --file", self.config.display()),
        }
    }

    fn passwords(&self) -> anyhow::Result<PathBuf> {
        self.path(
            |source| match source {
                SourceConfig::Mqtt(listener) => listener.passwords.as_ref(),
                _ => None,
            },
            "passwords",
        )
    }

    fn tokens(&self) -> anyhow::Result<PathBuf> {
        self.path(
            |source| match source {
                SourceConfig::Http(server) => server.tokens.as_ref(),
                _ => None,
            },
            "tokens",
        )
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", shown(text))?)
}

pub(super) fn run_user(command: &User) -> anyhow::Result<ExitCode> {
    match command {
        User::Add(Named { name, place }) => {
            let file = place.passwords()?;
            let password = read_password(name)?;
            put_user(&file, name, password.as_bytes())?;
            say(&format!(
                "user \"{name}\" is in {}; a running gateway uses it from the next login on",
                file.display()
            ))?;
        }
        User::List(place) => {
            Users::load(&place.passwords()?)?.names().iter().try_for_each(|name| say(name))?;
        }
        User::Remove { user: Named { name, place }, yes } => {
            let file = place.passwords()?;
            confirm_at_terminal(&format!("remove user \"{name}\" from {}?", file.display()), *yes)?;
            if !remove_user(&file, name)? {
                bail!("there is no user \"{name}\" in {}; `forebay user list` shows the users", file.display());
            }
            say(&format!("user \"{name}\" is removed from {}", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run_token(command: &Token) -> anyhow::Result<ExitCode> {
    match command {
        Token::Add(Named { name, place }) => {
            let file = place.tokens()?;
            println!("{}", put_token(&file, name)?);
            eprintln!("this is the token of \"{name}\", shown once; its hash is in {}", file.display());
        }
        Token::List(place) => {
            Tokens::load(&place.tokens()?)?.names().into_iter().try_for_each(say)?;
        }
        Token::Remove { token: Named { name, place }, yes } => {
            let file = place.tokens()?;
            confirm_at_terminal(&format!("remove the token of \"{name}\" from {}?", file.display()), *yes)?;
            if !remove_token(&file, name)? {
                bail!("\"{name}\" has no token in {}; `forebay token list` shows the names", file.display());
            }
            say(&format!("the token of \"{name}\" is removed from {}", file.display()))?;
        }
    }
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
