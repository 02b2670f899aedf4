//! Makes an event of the cells of a row, by the columns of the contract.

use crate::contract::{Column, Columns, NumberFormat, push_json_string};

/// The cells of a row.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Cells {
    /// Name and text of each cell; a name can occur more than once in XML.
    pub(super) cells: Vec<(String, String)>,
    /// What is wrong with the row as a whole.
    pub(super) problem: Option<String>,
}

/// How the cells of a row become an event.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// Fields by column; without them, each cell becomes a text with the name of its column.
    columns: Option<Columns>,
    numbers: NumberFormat,
}

impl Layout {
    pub(super) fn new(columns: Option<&Columns>, numbers: NumberFormat) -> Self {
        Self { columns: columns.cloned(), numbers }
    }

    /// The columns that the contract names.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().flat_map(|columns| columns.values().map(|column| column.column.as_str()))
    }

    /// The event of a row as JSON, and why the row cannot become one. The event of such a row has the texts of the
    /// cells. Empty cells make no field.
    pub(super) fn event(&self, row: &Cells) -> (Vec<u8>, Option<String>) {
        let mut refusal = row.problem.clone();
        let mut json = vec![b'{'];
        let Some(columns) = &self.columns else {
            push_all(&row.cells, &mut json);
            return (json, refusal);
        };
        for (field, column) in columns {
            let mut found = row.cells.iter().filter(|(name, _)| *name == column.column);
            let Some((_, text)) = found.next().filter(|(_, text)| !text.trim().is_empty()) else { continue };
            push_name(field, &mut json);
            let (start, more) = (json.len(), found.count());
            if let Err(reason) = self.push_value(column, text, more, &mut json) {
                json.truncate(start);
                push_json_string(&mut json, text);
                refusal.get_or_insert(format!("/{field}: column \"{}\" {reason}", column.column));
            }
        }
        json.push(b'}');
        (json, refusal)
    }

    fn push_value(&self, column: &Column, text: &str, more: usize, json: &mut Vec<u8>) -> Result<(), String> {
        if more > 0 {
            return Err(format!("occurs {} times in the row", more + 1));
        }
        column.push_value(text, self.numbers, json)
    }
}

/// Appends every cell as a text, and cells of the same name as a list.
fn push_all(cells: &[(String, String)], json: &mut Vec<u8>) {
    for (index, (name, text)) in cells.iter().enumerate() {
        if cells[..index].iter().any(|(before, _)| before == name) {
            continue;
        }
        push_name(name, json);
        let same: Vec<_> = cells[index..].iter().filter(|(other, _)| other == name).collect();
        if let [_] = same[..] {
            push_json_string(json, text);
            continue;
        }
        for (number, (_, text)) in same.into_iter().enumerate() {
            json.push(if number == 0 { b'[' } else { b',' });
            push_json_string(json, text);
        }
        json.push(b']');
    }
    json.push(b'}');
}

fn push_name(name: &str, json: &mut Vec<u8>) {
    if json.len() > 1 {
        json.push(b',');
    }
    push_json_string(json, name);
    json.push(b':');
}
