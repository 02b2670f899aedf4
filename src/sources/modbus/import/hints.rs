//! Words in columns that are not used, which may change values.

use super::columns::{Column, Meaning};
use super::draft::Rules;
use super::input::Row;
use super::words::words;

/// Lines of columns that are not used, with words that may change values.
const HINTS: [&str; 8] = ["offset", "scale", "factor", "divide", "multipl", "signed", "swap", "bcd"];
/// Hints that are shown; the rest is counted.
const HINTS_SHOWN: usize = 10;

fn is_unused(column: &Column) -> bool {
    column.unused.is_some()
        || matches!(column.meaning, None | Some(Meaning::Ignore | Meaning::Description | Meaning::Access))
}

/// Notes about words that may change values.
pub(super) fn hints(rules: &Rules<'_>, body: &[&Row]) -> Vec<String> {
    let mut found = Vec::new();
    for row in body {
        for (index, _) in rules.columns.iter().enumerate().filter(|(_, column)| is_unused(column)) {
            let cell = row.cell(index);
            if HINTS.iter().any(|hint| cell.to_lowercase().contains(hint)) {
                found.push(format!("look again: line {} says \"{cell}\", which is not used", row.line));
            }
        }
    }
    for row in body {
        let cell = rules.cell(row, Meaning::Values);
        if !matches!(cell, "" | "-") && words(cell).is_none() {
            found.push(format!(
                "look again: line {} has the values \"{cell}\", which are not understood, and not used",
                row.line
            ));
        }
    }
    let more = found.len().saturating_sub(HINTS_SHOWN);
    found.truncate(HINTS_SHOWN);
    if more > 0 {
        found.push(format!("and {more} more such lines"));
    }
    found
}

/// Questions about words with a number, such as "offset 1000", in columns that the user has not named.
pub(super) fn questions(rules: &Rules<'_>, body: &[&Row]) -> Vec<String> {
    let mut questions = Vec::new();
    for (index, column) in rules.columns.iter().enumerate().filter(|(_, column)| is_unused(column) && !column.is_given)
    {
        let mut telling = body.iter().filter(|row| changes_value(row.cell(index)));
        let Some(first) = telling.next() else { continue };
        let more = match telling.count() {
            0 => String::new(),
            more => format!(", and {more} more lines are like it"),
        };
        let meaning = if column.meaning == Some(Meaning::Description) { "description" } else { "ignore" };
        let name = if column.head.is_empty() { (index + 1).to_string() } else { column.head.clone() };
        questions.push(format!(
            "line {} says \"{}\" in the column \"{name}\"{more}: does that change values? Put it into a column of its own, such as \"offset\" or \"divisor\"; or say that it does not: --column \"{name}={meaning}\"",
            first.line,
            first.cell(index)
        ));
    }
    questions
}

/// Whether a text has a word of a scale or offset in front of a number: `offset 1000`, `divide by 10`, `scale: 0.1`. Small
/// whole numbers count something: `power factor 3`.
fn changes_value(text: &str) -> bool {
    const WORDS: [&str; 10] = [
        "offset",
        "scale",
        "scaling",
        "factor",
        "divide",
        "divided",
        "divisor",
        "multiply",
        "multiplied",
        "multiplier",
    ];
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|letter: char| letter.is_whitespace() || "()=:;*".contains(letter))
        .filter(|word| !word.is_empty())
        .collect();
    words.windows(3).map(<[&str]>::to_vec).chain(words.windows(2).map(<[&str]>::to_vec)).any(|run| {
        let is_between = run[1..run.len() - 1].iter().all(|word| matches!(*word, "by" | "of" | "is" | "with"));
        let number = run[run.len() - 1].trim_matches([',', '.', '+', '-']).replace(',', ".");
        let number = number.parse::<f64>().ok().filter(|number| number.fract() != 0.0 || *number >= 10.0);
        WORDS.contains(&run[0]) && is_between && number.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_numbers_change_values_and_names_do_not() {
        for text in ["read as offset 1000", "Divide by 10", "scale: 0.1", "value, factor=100", "multiplied by 0,01"] {
            assert!(changes_value(text), "{text}");
        }
        for text in
            ["Power factor", "Power factor 3", "Power factor L1", "no scale", "offset", "factor of 2 phases", "1000"]
        {
            assert!(!changes_value(text), "{text}");
        }
    }
}
