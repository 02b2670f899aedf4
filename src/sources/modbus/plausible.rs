//! Whether a value can be one, by its unit of measure: a hint at a wrong scale, type or order.

/// Units with the values that devices of a plant have, and how they may be written.
const RANGES: &[(&[&str], f64, f64)] = &[
    (&["v", "v ac", "v dc", "volt", "volts"], -1500.0, 60_000.0),
    (&["mv"], -1e6, 1e6),
    (&["kv"], -800.0, 800.0),
    (&["a", "a ac", "a dc", "amp", "ampere"], -10_000.0, 10_000.0),
    (&["ma"], -1e6, 1e6),
    (&["hz"], 0.0, 1000.0),
    (&["°c", "c", "degc", "℃", "deg c"], -80.0, 1500.0),
    (&["°f", "degf"], -110.0, 2700.0),
    (&["%", "percent", "%rh"], -100.0, 200.0),
    (&["w", "va", "var"], -1e8, 1e8),
    (&["kw", "kva", "kvar"], -1e5, 1e5),
    (&["kwh", "kvarh", "kvah"], -1e9, 1e9),
    (&["mwh"], -1e7, 1e7),
    (&["wh", "varh", "vah"], -1e12, 1e12),
    (&["bar"], -1.0, 3000.0),
    (&["mbar", "hpa"], -1000.0, 3e6),
    (&["rpm", "1/min"], -200_000.0, 200_000.0),
    (&["m3/h", "m³/h"], -1e6, 1e6),
    (&["l/min", "l/m"], -1e5, 1e5),
];

/// Values that are usual, where a wrong power of ten still is possible: unit, and the range of nine devices in ten.
const USUAL: &[(&str, f64, f64)] = &[("v", 1.0, 1100.0), ("hz", 10.0, 70.0), ("°c", -40.0, 150.0), ("%", 0.0, 100.0)];

/// Why a value is hardly one of its unit, with the factor that would make it one; `None` if it can be.
pub fn doubt(value: f64, unit: Option<&str>) -> Option<String> {
    let unit = unit?.trim().to_lowercase();
    if !value.is_finite() {
        return Some(format!("{value} is no number"));
    }
    let (names, least, most) = RANGES.iter().find(|(names, ..)| names.contains(&unit.as_str()))?;
    let short = names[0];
    let usual =
        USUAL.iter().find(|(usual, ..)| *usual == short).map_or((*least, *most), |(_, least, most)| (*least, *most));
    let is_usual = |value: f64| (usual.0..=usual.1).contains(&value);
    if value == 0.0 || is_usual(value) || ((*least..=*most).contains(&value) && usual == (*least, *most)) {
        return None;
    }
    // A float in the wrong order is tiny or huge.
    let is_absurd = value.abs() < 1e-6 || value.abs() > 1e15;
    if is_absurd {
        return Some(format!("{value} {unit} is hardly a value: are type and order right?"));
    }
    let Some(better) = [0.1, 0.01, 0.001, 10.0, 100.0].into_iter().find(|factor| is_usual(value * factor)) else {
        let is_possible = (*least..=*most).contains(&value);
        return (!is_possible).then(|| format!("{value} {unit} is hardly a value: are type, order and scale right?"));
    };
    let shown = format!("{:.6}", value * better);
    let shown = shown.trim_end_matches('0').trim_end_matches('.');
    Some(format!("{value} {unit} is unusual: with the scale × {better} it is {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_scales_and_orders_are_noticed() {
        let check = |value: f64, unit: &str, wanted: &str| {
            let said = doubt(value, Some(unit)).unwrap_or_else(|| panic!("{value} {unit} is doubtful"));
            assert!(said.contains(wanted), "{said}");
        };
        check(23_000.0, "V AC", "with the scale × 0.01 it is 230");
        check(2300.0, "V", "with the scale × 0.1 it is 230");
        check(5001.0, "Hz", "with the scale × 0.01 it is 50.01");
        check(215.0, "°C", "with the scale × 0.1 it is 21.5");
        check(2.3e-41, "V", "are type and order right");
        check(4e9, "V", "hardly a value");
        for (value, unit) in [
            (230.0, "V"),
            (0.0, "V"),
            (50.0, "Hz"),
            (21.5, "°C"),
            (-12.0, "°C"),
            (12_345_678.0, "kWh"),
            (5.0, "pieces"),
        ] {
            assert_eq!(doubt(value, Some(unit)), None, "{value} {unit}");
        }
        assert_eq!(doubt(1e9, None), None);
    }
}
