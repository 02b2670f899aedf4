//! Points that share registers.

use super::super::device::{Device, Point, REGISTERS_MAX};
use super::super::problem::Wrong;

/// Points that share registers by mistake, with their places in the list of the device. A register may have a point of its
/// own next to points for its bits, if no bit is in two of them.
pub(super) fn overlaps(device: &Device) -> Vec<(usize, Wrong)> {
    let mut order: Vec<usize> = (0..device.points.len()).collect();
    order.sort_by_key(|index| (device.points[*index].table, device.points[*index].address));
    let mut found = Vec::new();
    for (at, second) in order.iter().enumerate() {
        let later = &device.points[*second];
        for first in order[..at].iter().rev() {
            let earlier = &device.points[*first];
            let reach = u32::from(earlier.address) + u32::from(REGISTERS_MAX);
            if earlier.table != later.table || u32::from(later.address) >= reach {
                break;
            }
            if earlier.end() > u32::from(later.address) && !may_share(earlier, later) {
                // The problem is reported for the later point in the file.
                let (index, other) = if second > first { (*second, earlier) } else { (*first, later) };
                let place = device.place(other.table, u32::from(other.address), other.end());
                let message = format!("overlaps point \"{}\" ({place})", other.name);
                found.push((index, ("address", message)));
            }
        }
    }
    found
}

fn may_share(one: &Point, other: &Point) -> bool {
    match (one.encoding.field, other.encoding.field) {
        (Some(a), Some(b)) => one.address == other.address && (a.1 < b.0 || b.1 < a.0),
        (Some(_), None) | (None, Some(_)) => true,
        (None, None) => false,
    }
}
