//! What status and metrics show of the commands.

use parking_lot::Mutex;

/// The problems of the commands.
#[derive(Debug, Default)]
pub struct Board {
    state: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    link: Option<String>,
    inbox: Option<String>,
}

impl Board {
    /// Every problem, as a sentence.
    pub fn problems(&self) -> Vec<String> {
        let shown = self.state.lock();
        [&shown.link, &shown.inbox].into_iter().flatten().map(|problem| format!("commands: {problem}")).collect()
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

    /// Sets the problem of the inbox.
    pub(super) fn set_inbox_problem(&self, problem: Option<String>) {
        self.state.lock().inbox = problem;
    }
}
