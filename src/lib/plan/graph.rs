//! Order, cycles and depth of a graph that is given by each node's dependencies.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What sorting a graph gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sorted {
    /// Every node after its dependencies; among those that could come next, the lowest first.
    /// Without meaning when there are cycles.
    pub(super) order: Vec<usize>,
    /// Cycles that share no node, each from its lowest node along the dependencies. Empty exactly
    /// when the graph has none.
    pub(super) cycles: Vec<Vec<usize>>,
}

/// Sorts the nodes `0..dependencies.len()` (Kahn's algorithm). A node's dependencies must be
/// distinct nodes of the graph.
///
/// Where the sorting is stuck there is a cycle: it is taken out as if it were done and the sorting
/// goes on, so that separate cycles are all found and what merely depends on one is not blamed.
pub(super) fn sort(dependencies: &[Vec<usize>]) -> Sorted {
    let count = dependencies.len();
    let mut dependants = vec![Vec::new(); count];
    for (node, needed) in dependencies.iter().enumerate() {
        for &dependency in needed {
            dependants[dependency].push(node);
        }
    }
    let mut open: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    let mut placed = vec![false; count];
    let mut ready: BinaryHeap<Reverse<usize>> = (0..count)
        .filter(|&node| open[node] == 0)
        .map(Reverse)
        .collect();
    let mut sorted = Sorted {
        order: Vec::with_capacity(count),
        cycles: Vec::new(),
    };
    loop {
        let removed = if let Some(Reverse(node)) = ready.pop() {
            vec![node]
        } else if let Some(start) = placed.iter().position(|placed| !placed) {
            let cycle = cycle_from(start, dependencies, &placed);
            sorted.cycles.push(cycle.clone());
            cycle
        } else {
            return sorted;
        };
        for &node in &removed {
            placed[node] = true;
        }
        for node in removed {
            sorted.order.push(node);
            for &dependant in &dependants[node] {
                open[dependant] -= 1;
                if open[dependant] == 0 && !placed[dependant] {
                    ready.push(Reverse(dependant));
                }
            }
        }
    }
}

/// A cycle that is reached from `start` along dependencies that are not placed. When the sorting is
/// stuck, every node that is not placed has such a dependency, so the walk must meet itself.
fn cycle_from(start: usize, dependencies: &[Vec<usize>], placed: &[bool]) -> Vec<usize> {
    let mut walk = vec![start];
    let mut position = vec![None; dependencies.len()];
    position[start] = Some(0);
    let mut node = start;
    while let Some(&next) = dependencies[node].iter().find(|&&next| !placed[next]) {
        if let Some(first) = position[next] {
            walk.drain(..first);
            break;
        }
        position[next] = Some(walk.len());
        walk.push(next);
        node = next;
    }
    let lowest = (0..walk.len()).min_by_key(|&i| walk[i]).unwrap_or(0);
    walk.rotate_left(lowest);
    walk
}

/// For each node the nodes of the longest chain that ends with it. `order` must be a sorting of an
/// acyclic graph.
pub(super) fn chain_lengths(dependencies: &[Vec<usize>], order: &[usize]) -> Vec<usize> {
    let mut lengths = vec![0; dependencies.len()];
    for &node in order {
        let before = dependencies[node].iter().map(|&d| lengths[d]).max();
        lengths[node] = 1 + before.unwrap_or(0);
    }
    lengths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn separate_cycles_are_all_found_and_their_dependants_are_not_blamed() {
        // 0 ⇄ 1, 2 → 0, 3 → 4 → 5 → 3, 6 alone.
        let graph = [vec![1], vec![0], vec![0], vec![4], vec![5], vec![3], vec![]];
        assert_eq!(sort(&graph).cycles, [vec![0, 1], vec![3, 4, 5]]);
    }

    #[test]
    fn order_is_stable_and_chains_are_measured() {
        let graph = [vec![3], vec![], vec![1, 3], vec![1]];
        let sorted = sort(&graph);
        assert_eq!(sorted.order, [1, 3, 0, 2]);
        assert_eq!(chain_lengths(&graph, &sorted.order), [3, 1, 3, 2]);
    }

    /// Any graph of up to 12 nodes, self-dependencies aside.
    fn graphs() -> impl Strategy<Value = Vec<Vec<usize>>> {
        (1_usize..12).prop_flat_map(|count| {
            proptest::collection::vec(proptest::bits::u16::between(0, count), count).prop_map(
                move |rows| {
                    let row = |(node, bits): (usize, u16)| {
                        let has = |&d: &usize| d != node && bits & (1 << d) != 0;
                        // Thin the graph out, or nearly every one has a cycle.
                        (0..count)
                            .filter(has)
                            .filter(|d| (d + node) % 3 == 0)
                            .collect()
                    };
                    rows.into_iter().enumerate().map(row).collect()
                },
            )
        })
    }

    /// Whether a cycle exists, by the definition: some node reaches itself.
    fn reaches_itself(graph: &[Vec<usize>]) -> bool {
        (0..graph.len()).any(|start| {
            let mut seen = vec![false; graph.len()];
            let mut stack = graph[start].clone();
            while let Some(node) = stack.pop() {
                if node == start {
                    return true;
                }
                if !std::mem::replace(&mut seen[node], true) {
                    stack.extend(&graph[node]);
                }
            }
            false
        })
    }

    proptest! {
        #[test]
        fn a_graph_is_sorted_or_has_a_true_cycle(graph in graphs()) {
            let sorted = sort(&graph);
            let mut nodes = sorted.order.clone();
            nodes.sort_unstable();
            prop_assert_eq!(nodes, (0..graph.len()).collect::<Vec<_>>());
            prop_assert_eq!(sorted.cycles.is_empty(), !reaches_itself(&graph));
            for cycle in &sorted.cycles {
                for (i, node) in cycle.iter().enumerate() {
                    let next = cycle[(i + 1) % cycle.len()];
                    prop_assert!(graph[*node].contains(&next));
                }
            }
            if sorted.cycles.is_empty() {
                let place = |node| sorted.order.iter().position(|n| *n == node);
                for (node, needed) in graph.iter().enumerate() {
                    for &dependency in needed {
                        prop_assert!(place(dependency) < place(node));
                    }
                }
            }
        }
    }
}
