//! The read plan: the requests that read the points of a group.
//!
//! Promise: each point is in exactly one request, entirely and with the points that it needs; no request is larger than the device allows or touches a
//! declared hole; the number of requests is the smallest that these rules and `gap_max` allow.

use super::table::{Device, Hole};
use super::value::Table;
use std::cmp::Reverse;

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

impl Read {
    /// The request that reads these points of one table; there is at least one.
    pub fn of(device: &Device, points: Vec<usize>) -> Self {
        let extents = points.iter().map(|index| device.extent(*index));
        let (from, end) = extents.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1))).unwrap_or((0, 0));
        let table = points.first().map_or(Table::Holding, |index| device.points[*index].table);
        // Addresses and lengths of a checked table fit.
        Self { table, address: from as u16, count: (end - from) as u16, points }
    }

    /// The address behind it.
    pub fn end(&self) -> u32 {
        u32::from(self.address) + u32::from(self.count)
    }
}

/// The requests for the points of a group.
pub fn plan(device: &Device, group: usize) -> Vec<Read> {
    plan_of(device, (0..device.points.len()).filter(|index| device.points[*index].group == group).collect())
}

/// The requests for these points.
pub fn plan_of(device: &Device, points: Vec<usize>) -> Vec<Read> {
    let mut wanted: Vec<(usize, (u32, u32))> = points.into_iter().map(|index| (index, device.extent(index))).collect();
    // By table and address; the longer point first where two have the same address.
    wanted.sort_by_key(|(index, (from, end))| (device.points[*index].table, *from, Reverse(*end)));
    let mut reads: Vec<Read> = Vec::new();
    for (index, extent) in wanted {
        let table = device.points[index].table;
        match reads.last_mut().filter(|last| last.table == table && fits(device, last, extent)) {
            Some(last) => {
                last.count = (last.end().max(extent.1) - u32::from(last.address)) as u16;
                last.points.push(index);
            }
            None => reads.push(Read::of(device, vec![index])),
        }
    }
    reads
}

/// Whether a request may grow to include these addresses, which begin within or behind it.
fn fits(device: &Device, read: &Read, (from, to): (u32, u32)) -> bool {
    let reach = read.end();
    let end = reach.max(to);
    let most = if read.table.is_bits() { device.bits_max } else { device.registers_max };
    let gap = from.saturating_sub(reach);
    let is_open = |hole: &Hole| hole.table != read.table || u32::from(hole.to) < reach || u32::from(hole.from) >= from;
    end - u32::from(read.address) <= u32::from(most)
        && gap <= u32::from(device.gap_max)
        && (gap == 0 || device.holes.iter().all(is_open))
}

#[cfg(test)]
mod tests {
    use super::super::table::Point;
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
