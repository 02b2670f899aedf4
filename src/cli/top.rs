//! `forebay top`: a live screen of the running gateway.
//!
//! Promise: the terminal is as before when the command ends, whatever ends it. The screen asks the gateway once per
//! interval, and only for what it shows.

mod rows;

use super::client::{At, runtime, socket_path};
use super::drains::Drains;
use super::socket;
use super::table::{shortened, shortened_cell};
use crate::api::{Exception, Letter, ListedDevice, Status};
use crate::clock;
use crate::setting::{Span, rough};
use crate::telemetry::shown;
use anyhow::{Context, bail};
use clap::Args;
use hyper::Method;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span as Piece};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};
use rows::{Listing, Mood, Page};
use serde::de::DeserializeOwned;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
#[command(
    after_help = "Keys: 1 to 6 or Tab: page; arrows: scroll; /: filter; s: sort by the next column; r: reverse; q: quit."
)]
pub(super) struct Top {
    #[command(flatten)]
    at: At,
    /// Time between two requests to the gateway
    #[arg(long, default_value = "1s", value_parser = Span::parse)]
    interval: Span,
}

/// Shortest interval: a status reads the accounts of all lanes.
const INTERVAL_MIN: Duration = Duration::from_millis(200);
/// Dead letters that are shown.
const LETTERS: usize = 200;
/// Problems and notes above the table.
const PROBLEMS: usize = 5;

/// The last answers of the gateway.
#[derive(Debug, Default)]
struct Answers {
    status: Option<Status>,
    devices: Vec<ListedDevice>,
    letters: Vec<Letter>,
    exceptions: Vec<Exception>,
    /// Reason for which the last request failed.
    failure: Option<String>,
    drains: Drains,
    /// The backlogs that drain.
    draining: Vec<String>,
}

/// The choices of the person at the screen.
#[derive(Debug, Default)]
struct Choice {
    page: Page,
    filter: String,
    is_typing: bool,
    sort: usize,
    is_reversed: bool,
    table: TableState,
}

/// The connection to the gateway.
struct Gateway {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Gateway {
    fn ask<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let bytes = self.runtime.block_on(socket::call(&self.socket, Method::GET, path, Vec::new()))?;
        serde_json::from_slice(&bytes).context(socket::OTHER_FORMAT)
    }

    /// Asks for what the page shows. A failure keeps the answers that there are.
    fn refresh(&self, page: Page, answers: &mut Answers) {
        let result = (|| -> anyhow::Result<()> {
            let status = self.ask("/status")?;
            answers.draining = answers.drains.lines(&status);
            answers.status = Some(status);
            match page {
                Page::Devices => answers.devices = self.ask("/devices")?,
                Page::Letters => answers.letters = self.ask(&format!("/dead?state=open&limit={LETTERS}"))?,
                // Without a watch the gateway has no list of exceptions.
                Page::Exceptions => answers.exceptions = self.ask("/exceptions").unwrap_or_default(),
                Page::Lanes | Page::Links | Page::Sources => {}
            }
            Ok(())
        })();
        answers.failure = result.err().map(|error| format!("{error:#}"));
    }
}

pub(super) fn run(args: &Top) -> anyhow::Result<ExitCode> {
    if !std::io::stdout().is_terminal() {
        bail!("this needs a terminal; use `forebay status` or `forebay status --watch`");
    }
    let gateway = Gateway { socket: socket_path(&args.at)?, runtime: runtime()? };
    let (mut answers, mut choice) = (Answers::default(), Choice::default());
    gateway.refresh(choice.page, &mut answers);
    if let (None, Some(failure)) = (&answers.status, &answers.failure) {
        bail!("{failure}");
    }
    // Restores the terminal also after a panic.
    let mut terminal = ratatui::try_init()?;
    let ended = watch(&mut terminal, &gateway, (&mut answers, &mut choice), args.interval.0.max(INTERVAL_MIN));
    ratatui::restore();
    ended.map(|()| ExitCode::SUCCESS)
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    gateway: &Gateway,
    (answers, choice): (&mut Answers, &mut Choice),
    interval: Duration,
) -> anyhow::Result<()> {
    let mut asked: Instant = clock::instant();
    loop {
        terminal.draw(|frame| draw(frame, answers, choice))?;
        let wait = interval.saturating_sub(clock::instant().duration_since(asked));
        if event::poll(wait)? {
            let before = choice.page;
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
                    return Ok(());
                }
                if !choice.take(key.code) {
                    return Ok(());
                }
            }
            if choice.page == before {
                continue;
            }
        }
        gateway.refresh(choice.page, answers);
        asked = clock::instant();
    }
}

impl Choice {
    /// Handles a key; returns `false` to quit.
    fn take(&mut self, key: KeyCode) -> bool {
        if self.is_typing {
            match key {
                KeyCode::Enter => self.is_typing = false,
                KeyCode::Esc => (self.is_typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(letter) if self.filter.len() < 64 => self.filter.push(letter),
                _ => {}
            }
            return true;
        }
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('s') => self.sort += 1,
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char(digit @ '1'..='6') => self.show(Page::ALL[digit as usize - '1' as usize]),
            KeyCode::Tab | KeyCode::Right => self.show(self.page.next(1)),
            KeyCode::BackTab | KeyCode::Left => self.show(self.page.next(Page::ALL.len() - 1)),
            KeyCode::Down => self.table.select_next(),
            KeyCode::Up => self.table.select_previous(),
            KeyCode::PageDown => self.table.scroll_down_by(10),
            KeyCode::PageUp => self.table.scroll_up_by(10),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            _ => {}
        }
        true
    }

    fn show(&mut self, page: Page) {
        (self.page, self.sort, self.table) = (page, 0, TableState::default());
    }
}

fn draw(frame: &mut Frame<'_>, answers: &Answers, choice: &mut Choice) {
    let Some(status) = &answers.status else { return };
    let problems = problems(status, answers, usize::from(frame.area().width));
    let height = u16::try_from(problems.len()).unwrap_or(0);
    let parts = [
        Constraint::Length(1),
        Constraint::Length(height),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(u16::try_from(answers.draining.len()).unwrap_or(0)),
        Constraint::Length(1),
    ];
    let [head, above, tabs, body, below, foot] = Layout::vertical(parts).areas(frame.area());
    let title = format!(
        "{} · {} · {} · up {}",
        shown(&status.name),
        shown(&status.site),
        shown(&status.environment),
        rough(Duration::from_secs(status.uptime_seconds))
    );
    let title = shortened(&title, usize::from(head.width).max(1));
    frame.render_widget(Line::from(title).style(Modifier::BOLD), head);
    frame.render_widget(Paragraph::new(problems), above);
    frame.render_widget(pages(choice.page), tabs);
    let mut listing = rows::of(choice.page, status, (&answers.devices, &answers.letters, &answers.exceptions));
    listing.keep(&choice.filter);
    listing.sort(choice.sort, choice.is_reversed);
    draw_table(frame, body, &listing, &mut choice.table);
    let draining = answers.draining.iter().map(|line| Line::from(shown(line)).style(Color::Cyan));
    frame.render_widget(Paragraph::new(draining.collect::<Vec<_>>()), below);
    let keys = match (choice.is_typing, choice.filter.as_str()) {
        (true, text) => format!("filter: {text}_   Enter: keep, Esc: clear"),
        (false, "") => "1-6 page  ↑↓ scroll  / filter  s sort  r reverse  q quit".to_owned(),
        (false, text) => format!("filter: {text}   / change  s sort  r reverse  q quit"),
    };
    frame.render_widget(Line::from(keys).style(Color::DarkGray), foot);
}

/// The problems and notes, worst first.
fn problems(status: &Status, answers: &Answers, columns: usize) -> Vec<Line<'static>> {
    let line = |sign: &'static str, colour: Color, text: &str| {
        let text = shortened(text, columns.saturating_sub(sign.chars().count()).max(1));
        Line::from(vec![Piece::styled(sign, Style::new().fg(colour).bold()), Piece::raw(text)])
    };
    let failure = answers.failure.iter().map(|text| line("! ", Color::Red, text));
    let problems = status.problems.iter().map(|text| line("! ", Color::Red, text));
    let notes = status.notes.iter().map(|text| line("· ", Color::Yellow, text));
    let mut all: Vec<_> = failure.chain(problems).chain(notes).collect();
    if all.is_empty() {
        all.push(Line::from("all is well").style(Color::Green));
    }
    let more = all.len().saturating_sub(PROBLEMS);
    if more > 0 {
        all.truncate(PROBLEMS - 1);
        all.push(Line::from(format!("  and {} more: forebay status", more + 1)));
    }
    all
}

fn pages(current: Page) -> Line<'static> {
    let piece = |(index, page): (usize, &Page)| {
        let style = if *page == current { Style::new().reversed() } else { Style::new() };
        [Piece::styled(format!(" {} {} ", index + 1, page.name()), style), Piece::raw(" ")]
    };
    Line::from(Page::ALL.iter().enumerate().flat_map(piece).collect::<Vec<_>>())
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, listing: &Listing, state: &mut TableState) {
    if listing.rows.is_empty() {
        frame.render_widget(Line::from("nothing here").style(Color::DarkGray), area);
        return;
    }
    let widths = listing.widths(usize::from(area.width));
    let kept: Vec<usize> = (0..widths.len()).filter(|index| widths[*index] > 0).collect();
    let colour = |mood: Mood| match mood {
        Mood::Good => Style::new(),
        Mood::Doubtful => Style::new().fg(Color::Yellow),
        Mood::Bad => Style::new().fg(Color::Red),
    };
    let rows = listing.rows.iter().map(|row| {
        let cells = kept.iter().map(|index| {
            let text = Line::from(shortened_cell(&row.cells[*index], widths[*index]));
            Cell::from(if listing.right.contains(index) { text.right_aligned() } else { text })
        });
        Row::new(cells.collect::<Vec<_>>()).style(colour(row.mood))
    });
    let constraints: Vec<_> =
        kept.iter().map(|index| Constraint::Length(u16::try_from(widths[*index]).unwrap_or(u16::MAX))).collect();
    let head = kept.iter().map(|index| {
        let text = Line::from(listing.head[*index]);
        Cell::from(if listing.right.contains(index) { text.right_aligned() } else { text })
    });
    let table = Table::new(rows.collect::<Vec<_>>(), constraints)
        .header(Row::new(head.collect::<Vec<_>>()).style(Modifier::BOLD))
        .column_spacing(2)
        .row_highlight_style(Modifier::REVERSED);
    frame.render_stateful_widget(table, area, state);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    /// Answers of a gateway with 50 devices of long names. Ages are of three days and some hours.
    fn answers() -> Answers {
        fn recorded<T: DeserializeOwned>(text: &str) -> T {
            let ago = clock::wall() - Duration::from_secs(3 * 86_400 + 8 * 3600 + 1800);
            let ago = Timestamp::from(ago).to_string();
            serde_json::from_str(&text.replace("@ago", &ago).replace("@recorded", &ago)).expect("an answer")
        }
        let status: Status = recorded(include_str!("../../tests/screens/status.json"));
        Answers {
            draining: Drains::default().lines(&status),
            status: Some(status),
            devices: recorded(include_str!("../../tests/screens/devices.json")),
            letters: recorded(include_str!("../../tests/screens/letters.json")),
            ..Answers::default()
        }
    }

    fn screen(columns: u16, page: Page, filter: &str) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, 32)).expect("a terminal");
        let mut choice = Choice { page, filter: filter.to_owned(), ..Choice::default() };
        let answers = answers();
        terminal.draw(|frame| draw(frame, &answers, &mut choice)).expect("draws");
        let text = terminal.backend().to_string();
        // The backend encloses each line in quotes.
        let lines = text.lines().map(|line| line.trim_matches('"').trim_end());
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The screens stand in `tests/screens`; `FOREBAY_WRITE_GOLDEN=1` writes those that are missing.
    #[test]
    fn the_screens_show_problems_first_and_fit_80_and_120_columns() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screens");
        let mut different = Vec::new();
        for (page, name) in [
            (Page::Lanes, "lanes"),
            (Page::Links, "links"),
            (Page::Sources, "sources"),
            (Page::Devices, "devices"),
            (Page::Letters, "dead"),
        ] {
            for columns in [80, 120] {
                let text = screen(columns, page, "") + "\n";
                for word in ["gateway-of-hall-seven", "! link central", "1 lanes", "q quit"] {
                    assert!(text.contains(word), "\"{word}\" is missing in:\n{text}");
                }
                let file = folder.join(format!("top-{name}-{columns}.txt"));
                if !file.exists() && std::env::var_os("FOREBAY_WRITE_GOLDEN").is_some() {
                    std::fs::write(&file, &text).expect("written");
                }
                if std::fs::read_to_string(&file).unwrap_or_default() != text {
                    different.push(format!("{} is now:\n{text}", file.display()));
                }
            }
        }
        assert!(different.is_empty(), "{}", different.join("\n"));
    }

    /// The screen cuts a line that is too wide, so a table must not rely on it.
    #[test]
    fn the_columns_of_a_page_fit_the_width() {
        let answers = answers();
        let status = answers.status.as_ref().expect("a status");
        for page in Page::ALL {
            let listing = rows::of(page, status, (&answers.devices, &answers.letters, &answers.exceptions));
            for columns in [80, 120] {
                let kept: Vec<_> = listing.widths(columns).into_iter().filter(|width| *width > 0).collect();
                let used = kept.iter().map(|width| width + 2).sum::<usize>() - 2;
                assert!(used <= columns, "{page:?}: {used} of {columns}");
            }
        }
    }

    #[test]
    fn keys_change_page_filter_and_order() {
        let text = screen(120, Page::Devices, "-017");
        assert!(
            text.contains("10.20.30.17") && !text.contains("10.20.30.16") && text.contains("filter: -017"),
            "{text}"
        );
        let mut choice = Choice::default();
        for key in [KeyCode::Char('4'), KeyCode::Char('/'), KeyCode::Char('q'), KeyCode::Enter, KeyCode::Char('s')] {
            assert!(choice.take(key), "{key:?} does not quit");
        }
        assert_eq!((choice.page, choice.filter.as_str(), choice.sort), (Page::Devices, "q", 1));
        assert!(!choice.take(KeyCode::Char('q')));
    }
}
