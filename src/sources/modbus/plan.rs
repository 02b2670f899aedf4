//! The read plan: the requests that read the points of a group.
//!
//! Promise: each point is entirely in exactly one request; no request is larger than the device allows or touches a
//! declared hole; the number of requests is the smallest that these rules and `gap_max` allow.

use super::table::{Device, Hole, Point};
use super::value::Table;

/// The most registers in one answer.
pub const REGISTERS_MAX: u16 = 125;
/// The most bits in one answer.
pub const BITS_MAX: u16 = 2000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub table: Table,
    /// The first register or bit, from 0.
    pub address: u16,
    /// Number of registers or bits.
    pub count: u16,
    /// The points in it: indexes in the list of the device.
    pub points: Vec<usize>,
}

/// The requests for the points of a group.
pub fn plan(device: &Device, group: usize) -> Vec<Read> {
    let mut wanted: Vec<(usize, &Point)> =
        device.points.iter().enumerate().filter(|(_, point)| point.group == group).collect();
    // By table and address; the longer point first where two have the same address.
    let position = |point: &Point| (point.table, point.address, std::cmp::Reverse(point.count));
    wanted.sort_by_key(|(_, point)| position(point));
    let mut reads: Vec<Read> = Vec::new();
    for (index, point) in wanted {
        let end = u32::from(point.address) + u32::from(point.count);
        if let Some(last) = reads.last_mut()
            && last.table == point.table
            && fits(device, last, point)
        {
            let reach = end.max(u32::from(last.address) + u32::from(last.count)) - u32::from(last.address);
            last.count = reach as u16;
            last.points.push(index);
            continue;
        }
        reads.push(Read { table: point.table, address: point.address, count: point.count, points: vec![index] });
    }
    reads
}

/// Whether a request may grow to include a point.
fn fits(device: &Device, read: &Read, point: &Point) -> bool {
    let (start, reach) = (u32::from(read.address), u32::from(read.address) + u32::from(read.count));
    let end = reach.max(u32::from(point.address) + u32::from(point.count));
    let most = if read.table.is_bits() { device.bits_max } else { device.registers_max };
    let gap = u32::from(point.address).saturating_sub(reach);
    let is_open = |hole: &Hole| {
        hole.table != read.table || u32::from(hole.to) < reach || u32::from(hole.from) >= u32::from(point.address)
    };
    end - start <= u32::from(most) && gap <= u32::from(device.gap_max) && (gap == 0 || device.holes.iter().all(is_open))
}

#[cfg(test)]
mod tests {
    use super::super::value::{Encoding, Order, Type};
    use super::*;
    use proptest::prelude::*;

    fn device(points: &[(Table, u16, u16)], holes: &[(u16, u16)], gap_max: u16) -> Device {
        let point = |(index, (table, address, count)): (usize, &(Table, u16, u16))| Point {
            name: format!("p{index}"),
            table: *table,
            address: *address,
            count: *count,
            ..Point::plain(Encoding::of(Type::U16, Order::Abcd))
        };
        Device {
            points: points.iter().enumerate().map(point).collect(),
            holes: holes.iter().map(|(from, to)| Hole { table: Table::Holding, from: *from, to: *to }).collect(),
            gap_max,
            ..Device::default()
        }
    }

    fn shape(device: &Device) -> Vec<(Table, u16, u16)> {
        plan(device, 0).iter().map(|read| (read.table, read.address, read.count)).collect()
    }

    #[test]
    fn neighbours_share_a_request_and_holes_are_left_alone() {
        use Table::{Coil, Holding};
        assert_eq!(shape(&device(&[(Holding, 0, 2), (Holding, 4, 2)], &[], 16)), [(Holding, 0, 6)]);
        assert_eq!(
            shape(&device(&[(Holding, 0, 2), (Holding, 4, 2)], &[(3, 3)], 16)),
            [(Holding, 0, 2), (Holding, 4, 2)]
        );
        assert_eq!(shape(&device(&[(Holding, 0, 2), (Holding, 4, 2)], &[], 1)), [(Holding, 0, 2), (Holding, 4, 2)]);
        assert_eq!(shape(&device(&[(Holding, 0, 1), (Coil, 1, 1)], &[], 16)), [(Coil, 1, 1), (Holding, 0, 1)]);
        let long: Vec<_> = (0..130).map(|address| (Holding, address, 1)).collect();
        assert_eq!(shape(&device(&long, &[], 16)), [(Holding, 0, 125), (Holding, 125, 5)]);
        assert_eq!(shape(&device(&[(Holding, 65_534, 2)], &[], 16)), [(Holding, 65_534, 2)]);
    }

    /// The smallest number of requests, found by trying every partition.
    fn fewest(device: &Device, spans: &[(u32, u32)]) -> usize {
        let mut best = vec![0; spans.len() + 1];
        for end in 1..=spans.len() {
            let allowed = |start: &usize| {
                let part = &spans[*start..end];
                let top = part.iter().map(|span| span.1).max().unwrap_or(0);
                let is_whole = part.windows(2).enumerate().all(|(at, pair)| {
                    let reach = part[..=at].iter().map(|span| span.1).max().unwrap_or(0);
                    let gap = pair[1].0.saturating_sub(reach);
                    let crossed = |hole: &Hole| u32::from(hole.from) < pair[1].0 && u32::from(hole.to) >= reach;
                    gap <= u32::from(device.gap_max) && (gap == 0 || !device.holes.iter().any(crossed))
                });
                is_whole && top - part[0].0 <= u32::from(device.registers_max)
            };
            best[end] = (0..end).filter(allowed).map(|start| best[start] + 1).min().unwrap_or(usize::MAX);
        }
        best[spans.len()]
    }

    proptest! {
        #[test]
        fn every_point_is_read_once_whole_and_with_the_fewest_requests(
            mut spans in prop::collection::vec((0u16..600, 1u16..5), 1..60),
            hole in (0u16..600, 0u16..20),
            gap_max in 0u16..40,
            registers_max in 8u16..=125,
        ) {
            let (from, to) = (hole.0, hole.0 + hole.1);
            spans.retain(|(address, count)| address + count <= from || *address > to);
            spans.sort_unstable();
            // Points do not overlap: `check` refuses a table where they do.
            let mut end = 0;
            spans.retain(|(address, count)| {
                let is_free = *address >= end;
                if is_free {
                    end = address + count;
                }
                is_free
            });
            let points: Vec<_> = spans.iter().map(|(address, count)| (Table::Holding, *address, *count)).collect();
            let device = Device { registers_max, ..device(&points, &[(from, to)], gap_max) };
            let reads = plan(&device, 0);
            let mut seen: Vec<usize> = reads.iter().flat_map(|read| read.points.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..points.len()).collect::<Vec<_>>());
            for read in &reads {
                prop_assert!(read.count <= registers_max);
                prop_assert!(read.address + read.count <= from || read.address > to, "{read:?} touches {from} to {to}");
                for index in &read.points {
                    let point = &device.points[*index];
                    prop_assert!(point.address >= read.address);
                    prop_assert!(point.address + point.count <= read.address + read.count);
                }
            }
            let spans: Vec<_> = spans.iter().map(|(address, count)| (u32::from(*address), u32::from(address + count))).collect();
            prop_assert_eq!(reads.len(), fewest(&device, &spans));
        }
    }
}
