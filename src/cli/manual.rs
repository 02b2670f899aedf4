//! `forebay completions` and `forebay man`: what the command line says of itself.
//!
//! Invariant: both come from the definition of the commands, as the pages of the package do.

use anyhow::{Context, bail};
use clap::Args;
use clap_complete::Shell;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  forebay completions bash > /etc/bash_completion.d/forebay\n  \
                        forebay completions zsh > ~/.zfunc/_forebay")]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  forebay man | man -l -\n  forebay man dead requeue | man -l -\n  \
                        forebay man --output /usr/local/share/man/man1")]
pub(super) struct Manual {
    /// The command, such as `dead requeue`; default: the program itself
    command: Vec<String>,
    /// Write the pages of all commands into this folder
    #[arg(long, conflicts_with = "command")]
    output: Option<PathBuf>,
}

pub(super) fn completions(args: &Completions, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "forebay", &mut text);
    std::io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn manual(args: &Manual, mut root: clap::Command) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &args.output {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        clap_mangen::generate_to(root, folder).with_context(|| format!("cannot write to {}", folder.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    root.build();
    let mut found = &root;
    for word in &args.command {
        let Some(next) = found.find_subcommand(word) else {
            bail!("\"{word}\" is no command of {}", found.get_name());
        };
        found = next;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(found.clone()).render(&mut text)?;
    std::io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}
