//! Commands of central to the devices of the plant, answered by receipts.
//!
//! Promise: a command that was acknowledged to central's broker survives a power cut and ends in one final receipt, or in
//! one that says `unknown`. A repeat of it, whenever it comes, is not executed again.
//! Invariants:
//! - only what an enabled contract allows the proven sender is executed;
//! - the intent is durable before the effect, and an effect whose fate is unknown is not repeated.
//!
//! Not here: contracts of commands (`contract`), the delivery to devices (`sources/mqtt`) and of receipts (`forward`).

mod board;
mod envelope;
mod inbox;
mod intake;
mod message;
mod outlet;
mod row;
mod subscription;
mod worker;

pub use board::Board;

use crate::clock;
use crate::contract::{CommandContract, GatewayNames};
use crate::event::Timestamp;
use crate::forward;
use crate::journal::Journal;
use crate::link::{Client, ConnectAs, CredentialRotation, Inbox as InboxSettings, Target};
use crate::local::Local;
use crate::shutdown::Shutdown;
use inbox::{Inbox, Past};
use message::Now;
use outlet::Outlet;
use std::sync::Arc;
use std::time::Duration;
use subscription::{PAYLOAD_BYTES_MAX, RECEIVE_MAXIMUM, Subscriber};
use tokio::sync::mpsc;
use worker::Worker;

/// Shortest time for which central's broker keeps commands of a gateway that is away (MQTT 5).
const SESSION_EXPIRY_MIN: Duration = Duration::from_secs(86_400);

/// The settings of the commands: the destination that sends them, and their contracts.
#[derive(Clone, Debug)]
pub struct Config {
    pub destination: forward::Config,
    pub contracts: Vec<Arc<CommandContract>>,
    /// Digests of the files of the contracts and of the destination.
    pub files: [u64; 2],
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files && self.destination == other.destination
    }
}

/// The commands of one destination.
pub struct Commands {
    subscriber: Subscriber,
    worker: Worker,
    target: Arc<Target>,
    connect_as: ConnectAs,
    board: Arc<Board>,
}

impl Commands {
    /// Restores the commands; it connects once it runs. Blocks the thread.
    pub fn open(
        config: &Config,
        around: &GatewayNames,
        journal: &Arc<Journal>,
        local: &Arc<Local>,
        board: &Arc<Board>,
    ) -> Result<Self, String> {
        let notes = journal.notes("command");
        let past = Past { is_used: Outlet::has_been_used(journal), window_from: journal.window().2 };
        let now = Now { time: Timestamp::from(clock::wall()), is_trusted: clock::is_trusted() };
        let inbox = Inbox::open(notes.clone(), around.clone(), config.contracts.clone(), past, now);
        let inbox = inbox.map_err(|error| error.to_string())?;
        let outlet = Outlet::open(journal, around, &config.contracts)?;
        let (sender, arrivals) = mpsc::channel(2 * usize::from(RECEIVE_MAXIMUM));
        let subscriber = Subscriber::new(around.command_prefix(), sender, Arc::clone(board));
        let longest = config.contracts.iter().map(|contract| contract.expires_max).max().unwrap_or_default();
        let settings = InboxSettings {
            expiry: longest.max(SESSION_EXPIRY_MIN),
            receive_maximum: RECEIVE_MAXIMUM,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
        };
        let client = config.destination.client_ids().of(forward::COMMANDS, around);
        let (local, own) = (Arc::clone(local), Arc::clone(board));
        Ok(Self {
            subscriber,
            worker: Worker { inbox, outlet, local, notes, board: own, arrivals },
            target: Arc::new(config.destination.target()?),
            connect_as: ConnectAs { client, will: None, inbox: Some(settings) },
            board: Arc::clone(board),
        })
    }

    /// Takes commands until the shutdown. What is not acknowledged by then comes again.
    pub async fn run(self, mut shutdown: Shutdown) {
        let Self { mut subscriber, worker, target, connect_as, board } = self;
        let link = Client::new(target, connect_as, CredentialRotation::never());
        tokio::select! {
            () = link.run(&mut subscriber, &mut shutdown) => {}
            () = worker.run() => {}
        }
        board.clear();
    }
}
