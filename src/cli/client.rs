//! The running gateway that a command connects to: its socket, requests, and the format of answers.

use super::config_file::ConfigFile;
use super::socket;
use crate::config;
use crate::telemetry::{self, shows_colours};
use anyhow::Context;
use clap::Args;
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The running gateway to connect to, and the output format.
#[derive(Debug, Args)]
pub(super) struct At {
    #[command(flatten)]
    pub config: ConfigFile,
    /// Command socket of the gateway
    #[arg(long)]
    pub socket: Option<PathBuf>,
    /// Print JSON; errors stay text on standard error, with exit code 1
    #[arg(long)]
    pub json: bool,
}

/// Two worker threads: gateway devices have few cores, and the journal has its own threads.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_name("forebay")
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Runs the future of a command to its end on a new runtime.
pub(super) fn finished<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(runtime()?.block_on(work))
}

pub(super) fn socket_path(at: &At) -> anyhow::Result<PathBuf> {
    match &at.socket {
        Some(socket) => Ok(socket.clone()),
        None => Ok(config::socket_of(&at.config)?),
    }
}

/// Sends a GET request and decodes the response.
pub(super) fn ask<T: DeserializeOwned>(at: &At, path: &str) -> anyhow::Result<T> {
    request(at, Method::GET, path, Vec::new())
}

/// Sends a POST request with a JSON body and decodes the response.
pub(super) fn ask_with<T: DeserializeOwned>(at: &At, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
    request(at, Method::POST, path, serde_json::to_vec(body)?)
}

/// Sends a POST request without arguments.
pub(super) fn post<T: DeserializeOwned>(at: &At, path: &str) -> anyhow::Result<T> {
    ask_with(at, path, &serde_json::Value::Null)
}

/// Sends a request and decodes the response.
pub(super) fn request<T: DeserializeOwned>(at: &At, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<T> {
    let bytes = finished(socket::call(&socket_path(at)?, method, path, body))??;
    serde_json::from_slice(&bytes).context(socket::OTHER_FORMAT)
}

/// Formats a value as JSON that is safe to print.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(telemetry::shown_json(&serde_json::to_string_pretty(value)?))
}

/// Prints an answer as JSON or as the text that `show` makes of it.
pub(super) fn print<T: Serialize>(at: &At, value: &T, show: impl Fn(&T, bool) -> String) -> anyhow::Result<ExitCode> {
    let text = if at.json { json(value)? } else { show(value, shows_colours(&std::io::stdout())) };
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}
