//! Points that need others for their value: scale registers, and numbers in several registers.

use super::super::super::value::{SCALE_EXPONENT_MAX, Type};
use super::super::device::{Device, Point, Term};
use super::super::file::{File, FilePoint};
use super::super::problem::Wrong;
use std::collections::BTreeMap;

/// Points by their names: the place in the list of the device, `None` for one with problems of its own, and whether it needs
/// others itself.
type Names<'f> = BTreeMap<&'f str, (Option<usize>, bool)>;

/// Resolves the names of the points that others need. Returns what is wrong, with places in the list of the device.
/// `places` are the places in the file of the device's points.
pub(super) fn relate(device: &mut Device, file: &File, places: &[usize]) -> Vec<(usize, Wrong)> {
    let mut found = Vec::new();
    let needs = |raw: &FilePoint| raw.scale_from.is_some() || !raw.add.is_empty();
    let mut names: Names<'_> = file.points.iter().map(|raw| (raw.name.as_str(), (None, needs(raw)))).collect();
    for (place, raw) in places.iter().map(|index| &file.points[*index]).enumerate() {
        names.insert(&raw.name, (Some(place), needs(raw)));
    }
    for (place, raw) in places.iter().map(|index| &file.points[*index]).enumerate() {
        if !needs(raw) {
            continue;
        }
        match relations(device, &names, place, raw) {
            Ok((scale_from, terms)) => {
                let point = &mut device.points[place];
                (point.scale_from, point.terms) = (scale_from, terms);
                found.extend(reach(device, place).map(|wrong| (place, wrong)));
            }
            Err(wrong) => found.push((place, wrong)),
        }
    }
    found
}

fn relations(
    device: &Device,
    names: &Names<'_>,
    place: usize,
    raw: &FilePoint,
) -> Result<(Option<usize>, Vec<Term>), Wrong> {
    let own = &device.points[place];
    let is_number = !matches!(own.encoding.kind, Type::Bool | Type::Text) && own.encoding.words.is_empty();
    let key = if raw.scale_from.is_some() { "scale_from" } else { "add" };
    if !is_number {
        return Err((key, "only a number has a scale or parts; bits, texts and words have none".into()));
    }
    let scale_from = raw.scale_from.as_deref().map(|name| find(device, names, own, name)).transpose();
    let scale_from = scale_from.map_err(|message| ("scale_from", message))?;
    if let Some(point) = scale_from.map(|index| &device.points[index]) {
        let encoding = &point.encoding;
        let is_whole = encoding.kind.range().is_some() && encoding.words.is_empty();
        if !is_whole || encoding.scale != 1.0 || encoding.offset != 0.0 {
            let message = format!(
                "\"{}\" is no exponent; expected a whole number without scale, offset and words, which is the power of ten (-{SCALE_EXPONENT_MAX} to {SCALE_EXPONENT_MAX})",
                point.name
            );
            return Err(("scale_from", message));
        }
        if own.encoding.kind.is_float() {
            return Err(("scale_from", "only a whole number has a scale register".into()));
        }
    }
    let mut terms = Vec::new();
    for term in &raw.add {
        let point = find(device, names, own, &term.point).map_err(|message| ("add", message))?;
        let encoding = &device.points[point].encoding;
        if matches!(encoding.kind, Type::Bool | Type::Text) || !encoding.words.is_empty() {
            return Err(("add", format!("\"{}\" is no number", term.point)));
        }
        if term.factor == 0.0 || !term.factor.is_finite() {
            return Err(("add", format!("factor {} of \"{}\" is no factor", term.factor, term.point)));
        }
        terms.push(Term { point, factor: term.factor });
    }
    if !terms.is_empty() && own.counter.is_some() {
        return Err(("add", "a number of several registers cannot count; make its parts counters".into()));
    }
    Ok((scale_from, terms))
}

/// The place of a point that another one needs.
fn find(device: &Device, names: &Names<'_>, own: &Point, name: &str) -> Result<usize, String> {
    let (index, is_needy) = match names.get(name) {
        None => return Err(format!("point \"{name}\" does not exist")),
        Some((None, _)) => return Err(format!("point \"{name}\" has problems of its own")),
        Some((Some(index), is_needy)) => (*index, *is_needy),
    };
    let other = &device.points[index];
    if is_needy || name == own.name {
        return Err(format!("point \"{name}\" needs another point itself; only plain points can be needed"));
    }
    if other.group != own.group || other.table != own.table {
        return Err(format!(
            "point \"{name}\" is in another group or table; both are read with one request, so that they belong to the same moment"
        ));
    }
    Ok(index)
}

/// What keeps one request from reading a point together with those that it needs.
fn reach(device: &Device, place: usize) -> Option<Wrong> {
    let (from, end) = device.extent(place);
    let point = &device.points[place];
    let key = if point.scale_from.is_some() { "scale_from" } else { "add" };
    let most = if point.table.is_bits() { device.bits_max } else { device.registers_max };
    let count = end - from;
    if count > u32::from(most) {
        let message =
            format!("{count} registers, from {from} to {}, do not fit one request of at most {most}", end - 1);
        return Some((key, message));
    }
    let is_hit = |from_: u16, to: u16| u32::from(from_) < end && u32::from(to) >= from;
    let hole = device.holes.iter().find(|hole| hole.table == point.table && is_hit(hole.from, hole.to))?;
    Some((
        key,
        format!("the hole from {} to {} lies between the two registers, which one request reads", hole.from, hole.to),
    ))
}
