//! What status and metrics show of the commands.

use crate::api::OpenCommand;
use parking_lot::Mutex;

/// The problems of the commands, and the open ones.
#[derive(Debug, Default)]
pub struct Board {
    state: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    link: Option<String>,
    inbox: Option<String>,
    open: Vec<OpenCommand>,
}

impl Board {
    /// Every problem, as a sentence.
    pub fn problems(&self) -> Vec<String> {
        let shown = self.state.lock();
        [&shown.link, &shown.inbox].into_iter().flatten().map(|problem| format!("commands: {problem}")).collect()
    }

    /// The open commands, those of a target in their order.
    pub fn open(&self) -> Vec<OpenCommand> {
        self.state.lock().open.clone()
    }

    /// Removes all problems: there are no commands any more.
    pub(super) fn clear(&self) {
        *self.state.lock() = Shown::default();
    }

    /// Sets the problem of the connection; returns whether it is another one.
    pub(super) fn set_link_problem(&self, problem: Option<String>) -> bool {
        let mut shown = self.state.lock();
        let is_other = shown.link != problem;
        shown.link = problem;
        is_other
    }

    /// Shows the inbox: its problem and its open commands.
    pub(super) fn show_inbox(&self, problem: Option<String>, open: Vec<OpenCommand>) {
        let mut shown = self.state.lock();
        (shown.inbox, shown.open) = (problem, open);
    }
}
