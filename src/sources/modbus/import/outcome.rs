//! What a user says of a list, and what an import answers.

use super::address::Numbering;
use super::columns::Meaning;
use super::draft::SizeUnit;
use super::factor::{DecimalMark, ScaleMeaning};
use super::types::TextUnit;

/// What the user says of a list.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub numbering: Numbering,
    pub scale: Option<ScaleMeaning>,
    pub size: Option<SizeUnit>,
    pub text_length: Option<TextUnit>,
    pub decimal: Option<DecimalMark>,
    /// Which device of a list of several.
    pub device: Option<String>,
    /// Meanings of columns, by head or by number from 1.
    pub columns: Vec<(String, Meaning)>,
    /// Types, by their names in the list.
    pub types: Vec<(String, String)>,
    /// Sheet of a spreadsheet.
    pub sheet: Option<String>,
}

/// The result of an import.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// The device table as TOML.
    pub table: String,
    /// Number of points in the table.
    pub points: usize,
    /// What was taken as what, and what was assumed: a line each.
    pub report: Vec<String>,
    /// Lines that are not in the table, with the reasons.
    pub skipped: Vec<(usize, String)>,
    /// How each line was understood.
    pub lines: Vec<(usize, String)>,
}

/// Why there is no table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no register list.
    NoList(String),
    /// The list leaves open what its values are.
    Open {
        /// What was understood so far.
        report: Vec<String>,
        questions: Vec<String>,
    },
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::NoList(why)
    }
}
