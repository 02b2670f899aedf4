//! What the captures of one Odoo share.

use super::config::Config;
use super::health::Health;
use super::outbox_feed::OutboxFeed;
use super::reconciliation::ReconcilePace;
use crate::clock;
use crate::event::Timestamp;
use crate::ingest::Ingest;
use crate::odoo::{Account, Client, OdooError};
use crate::sources::Stats;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Interval at which fields, rights, companies and languages are learnt again: a person who has given a right waits for
/// its effect, and each contract takes one call.
pub(super) const LEARN_EVERY: Duration = Duration::from_secs(180);

/// The context that the captures of one Odoo share.
#[derive(Debug)]
pub(super) struct CaptureContext {
    pub(super) config: Config,
    pub(super) client: Arc<Client>,
    pub(super) ingest: Arc<Ingest>,
    pub(super) stats: Arc<Stats>,
    pub(super) health: Health,
    pub(super) pace: ReconcilePace,
    pub(super) feed: Arc<OutboxFeed>,
    /// What Odoo said about the account, and when.
    account: tokio::sync::Mutex<Option<(Arc<Account>, Instant)>>,
}

/// Time before the end of the key at which the status warns: a person needs time to make a new one.
const KEY_WARNING: Duration = Duration::from_secs(14 * 86_400);

impl CaptureContext {
    /// The context of a source that reads with `client`.
    pub(super) fn new(
        config: Config,
        client: Arc<Client>,
        ingest: Arc<Ingest>,
        (stats, health): (Arc<Stats>, Health),
    ) -> Self {
        let pace = ReconcilePace::new(config.reconcile.0);
        let (feed, account) = (Arc::default(), tokio::sync::Mutex::default());
        Self { config, client, ingest, stats, health, pace, feed, account }
    }

    /// What Odoo says about the account; asked again if the last answer is old. The captures share it.
    pub(super) async fn account(&self) -> Result<Arc<Account>, OdooError> {
        let mut known = self.account.lock().await;
        let now = clock::instant();
        if let Some((account, at)) = &*known
            && now.duration_since(*at) < LEARN_EVERY / 2
        {
            return Ok(Arc::clone(account));
        }
        let account = Arc::new(self.client.account().await?);
        let soon = Timestamp::from(clock::wall() + KEY_WARNING);
        self.health.key_expires(account.key_expires.filter(|at| at.0 < soon.0));
        *known = Some((Arc::clone(&account), now));
        Ok(account)
    }
}
