//! Documents to parts, by shares of the text: groups that belong together stay together, and each part has its share to
//! within the largest group.

use std::cmp::Reverse;

use formats::campaign::Part;

/// A group of more than this much of the smallest part's share of the text is placed first, where there is most room.
const LARGE: f64 = 0.5;

/// Documents that stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Bytes of text.
    pub bytes: u64,
    /// Place in the shuffle.
    pub order: u64,
}

/// The part of each group. Large groups go first, the largest first, to the part with most room left, so that none makes
/// up most of a small part. The others are laid end to end in their shuffled order, and cut where a part is full.
pub fn split(groups: &[Group], shares: &[(Part, f64)]) -> Vec<Part> {
    let sum = |of: &[usize]| of.iter().map(|&i| groups[i].bytes).sum::<u64>() as f64;
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by_key(|&i| groups[i].order);
    let total_share: f64 = shares.iter().map(|(_, share)| share).sum();
    let all = sum(&order);
    let mut room: Vec<f64> = shares.iter().map(|(_, share)| share / total_share * all).collect();
    let smallest = room.iter().copied().fold(f64::INFINITY, f64::min);
    let (mut large, others): (Vec<usize>, Vec<usize>) =
        order.into_iter().partition(|&i| groups[i].bytes as f64 > LARGE * smallest);
    large.sort_by_key(|&i| Reverse(groups[i].bytes));

    let mut parts = vec![Part::Train; groups.len()];
    for i in large {
        // The first of several that have as much.
        let widest = (0..room.len()).rev().max_by(|&a, &b| room[a].total_cmp(&room[b])).unwrap_or_default();
        parts[i] = shares[widest].0;
        room[widest] -= groups[i].bytes as f64;
    }
    let open: f64 = room.iter().map(|room| room.max(0.0)).sum();
    let scale = open / sum(&others).max(1.0);
    let (mut part, mut end, mut done) = (0, room[0].max(0.0), 0.0);
    for i in others {
        let bytes = groups[i].bytes as f64;
        let middle = (done + bytes / 2.0) * scale;
        while middle >= end && part + 1 < shares.len() {
            part += 1;
            end += room[part].max(0.0);
        }
        parts[i] = shares[part].0;
        done += bytes;
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn sizes(groups: &[Group], parts: &[Part]) -> BTreeMap<Part, u64> {
        let mut sizes = BTreeMap::new();
        for (group, part) in groups.iter().zip(parts) {
            *sizes.entry(*part).or_default() += group.bytes;
        }
        sizes
    }

    fn groups() -> impl Strategy<Value = Vec<Group>> {
        let bytes = prop_oneof![8 => 1_u64..2_000, 1 => 1_u64..100_000, 1 => 1_u64..10_000_000];
        let group = (bytes, any::<u64>()).prop_map(|(bytes, order)| Group { bytes, order });
        prop::collection::vec(group, 1..200)
    }

    fn shares() -> impl Strategy<Value = Vec<(Part, f64)>> {
        prop::collection::vec(prop_oneof![0.01_f64..0.1, 0.1_f64..1.0], 1..=4)
            .prop_map(|shares| Part::ALL.into_iter().zip(shares).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_part_has_its_share_to_within_the_largest_group((groups, shares) in (groups(), shares())) {
            let parts = split(&groups, &shares);
            prop_assert_eq!(parts.len(), groups.len());
            let (sizes, largest) = (sizes(&groups, &parts), groups.iter().map(|g| g.bytes).max().unwrap());
            prop_assert!(sizes.keys().all(|part| shares.iter().any(|(p, _)| p == part)), "a part without a share");
            let all: u64 = groups.iter().map(|group| group.bytes).sum();
            let total: f64 = shares.iter().map(|(_, share)| share).sum();
            for (part, share) in &shares {
                let size = sizes.get(part).copied().unwrap_or_default() as f64;
                let wanted = share / total * all as f64;
                prop_assert!((size - wanted).abs() <= largest as f64 + 1e-6, "{} has {}, not {}", part, size, wanted);
            }

            // The order of reading makes no difference.
            let mut orders: Vec<u64> = groups.iter().map(|group| group.order).collect();
            orders.sort_unstable();
            orders.dedup();
            if orders.len() == groups.len() {
                let reversed: Vec<Group> = groups.iter().rev().copied().collect();
                let mut again = split(&reversed, &shares);
                again.reverse();
                prop_assert_eq!(again, parts);
            }
        }
    }

    #[test]
    fn documents_of_unlike_length_fill_every_part() {
        // 62 documents from 400 bytes to 400 kB, as on the machine: by documents, a part had 797 tokens.
        let shares = [(Part::Train, 0.7), (Part::Dev, 0.1), (Part::Select, 0.1), (Part::Report, 0.1)];
        for seed in 0..200_u64 {
            let group = |i: u64| Group {
                bytes: (400.0 * 1.12_f64.powi(i as i32)) as u64,
                order: crate::decontaminate::stir(seed * 1_000 + i),
            };
            let groups: Vec<Group> = (0..62).map(group).collect();
            let all: u64 = groups.iter().map(|g| g.bytes).sum();
            let sizes = sizes(&groups, &split(&groups, &shares));
            for (part, share) in shares {
                let part_share = sizes[&part] as f64 / all as f64;
                assert!((0.5 * share..1.5 * share).contains(&part_share), "seed {seed}: {part} has {part_share}");
            }
        }
    }

    #[test]
    fn a_group_as_large_as_a_part_goes_where_there_is_room() {
        let shares = [(Part::Train, 0.8), (Part::Dev, 0.04), (Part::Select, 0.08), (Part::Report, 0.08)];
        let mut groups: Vec<Group> =
            (0..1000).map(|i| Group { bytes: 1_000, order: crate::decontaminate::stir(i) }).collect();
        for order in (0..64).map(|i| i << 58) {
            groups.push(Group { bytes: 40_000, order });
            let parts = split(&groups, &shares);
            assert_eq!(*parts.last().unwrap(), Part::Train);
            groups.pop();
        }
        // Nearly everything is one group: what is left is shared out among the others.
        groups.push(Group { bytes: 9_000_000, order: 1 << 63 });
        let sizes = sizes(&groups, &split(&groups, &shares));
        let expected = BTreeMap::from([
            (Part::Train, 9_000_000),
            (Part::Dev, 200_000),
            (Part::Select, 400_000),
            (Part::Report, 400_000),
        ]);
        assert_eq!(sizes, expected);
    }
}
