//! `forebay command`: the commands of central.

use super::client::{At, ask, print};
use super::table::{seconds, table};
use crate::api::OpenCommand;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub(super) enum Commands {
    /// List commands of central that are accepted or started, those of a target in their order
    #[command(after_help = "Example: forebay command list --json | jq '.[] | select(.target == \"press-4\")'")]
    List(At),
}

pub(super) fn run(command: &Commands) -> anyhow::Result<ExitCode> {
    let Commands::List(at) = command;
    let open: Vec<OpenCommand> = ask(at, "/commands")?;
    print(at, &open, |open, is_coloured| show(open, is_coloured))
}

fn show(open: &[OpenCommand], is_coloured: bool) -> String {
    if open.is_empty() {
        return "no open commands".into();
    }
    let row = |one: &OpenCommand| {
        let (state, expires) = (one.state.clone(), seconds(&one.expires));
        vec![
            one.target.clone(),
            state,
            one.contract.clone(),
            one.r#do.clone(),
            one.sender.clone(),
            expires,
            one.id.clone(),
        ]
    };
    let rows: Vec<_> = open.iter().map(row).collect();
    table(&["TARGET", "STATE", "CONTRACT", "DO", "FROM", "EXPIRES (ZONE)", "ID"], &[], &rows, is_coloured)
}
