//! The API of the command socket: the types that cross it, for both of its ends.
//!
//! Promise: what one end serializes the other end reads. The gateway fills in these types, and `cli` prints them or sends
//! them; nothing else crosses the socket.
//! Invariants:
//! - no logic: the functions here only name or describe a value;
//! - [`VERSION`] changes with each change that an older end cannot read. A new field of a response has a default.
//! - types that the journal stores as well say so: each stored form must stay readable.
//!
//! Not here: who may call what (`admin`), the tables (`cli`).

/// Version of the API, as the header [`VERSION_HEADER`] of each response names it.
pub const VERSION: &str = "1";
/// Name of the header with the version; in lower case, as hyper needs it.
pub const VERSION_HEADER: &str = "forebay-api";

mod accounts;
mod command;
mod exception;
mod journal;
mod letters;
mod operation;
mod replay;
mod status;

pub use accounts::{Balance, StreamAccount};
pub use command::OpenCommand;
pub use exception::{Exception, ExceptionKind, Severity};
pub use journal::{
    Backup, BackupProgress, BackupRequest, ExportProgress, ExportRequest, LaneRecount, OwedRecount, OwedStream,
    Recount, Selection, StateRecount, StreamRecount, VerifyProgress,
};
pub use letters::{DeadLetterState, DeadLetterStatus, Letter, LetterDecision, LetterEdit, LetterFilter, LetterStage};
pub use operation::{
    AuditEntry, DeviceRefusal, DeviceStatus, HealthCheck, ListedDevice, OdooLoad, OdooLoadAnswer, OdooLoadRequest,
    PointStatus, RefusedClient, ReloadAnswer, TailEvent, UnitStatus,
};
pub use replay::{Replay, ReplayFilter, ReplayRequest, ReplayState};
pub use status::{
    Backlog, BudgetStatus, ClockStatus, DeadLetterCounts, DedupeStatus, Drain, LaneStatus, LineStatus, LinkStatus,
    MemoryUsage, Outlook, PeriodUse, SourceStatus, SparkplugStatus, Status,
};
