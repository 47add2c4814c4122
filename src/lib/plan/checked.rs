//! A plan whose structure is known to be sound.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::check::check_structure;
use super::{Plan, Step};

/// A plan that passed [`super::check()`].
///
/// It is stored as the plan that it was made of. Reading it back checks its structure again: ids,
/// dependencies, references and cycles. Tools, arguments and limits are not looked at then, since
/// they may have changed since it was accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedPlan {
    plan: Plan,
    /// For each step the steps that it waits for, ascending.
    dependencies: Vec<Vec<usize>>,
    order: Vec<usize>,
}

impl CheckedPlan {
    pub(super) fn new(plan: Plan, dependencies: Vec<Vec<usize>>, order: Vec<usize>) -> Self {
        Self {
            plan,
            dependencies,
            order,
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plan, owned.
    pub fn into_plan(self) -> Plan {
        self.plan
    }

    /// Its steps, as they were written.
    pub fn steps(&self) -> &[Step] {
        &self.plan.steps
    }

    /// Its steps, each after those that it waits for; otherwise as they were written.
    pub fn in_order(&self) -> impl Iterator<Item = &Step> {
        self.order.iter().map(|&index| &self.plan.steps[index])
    }

    /// The index in [`CheckedPlan::steps`] of the step with this id.
    pub fn index_of(&self, id: &str) -> Option<usize> {
        self.plan.steps.iter().position(|step| step.id == id)
    }

    /// The indices of the steps that the step at `index` waits for, ascending: those that it names
    /// and those that its arguments refer to. Empty when there is no such step.
    pub fn dependencies(&self, index: usize) -> &[usize] {
        self.dependencies.get(index).map_or(&[], Vec::as_slice)
    }
}

impl Serialize for CheckedPlan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.plan.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for CheckedPlan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let plan = Plan::deserialize(deserializer)?;
        check_structure(&plan).map_err(|problems| {
            let first = problems.first().map(ToString::to_string);
            de::Error::custom(first.unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::samples::checked;

    #[test]
    fn stored_plans_come_back_equal() {
        let plan = checked(&[("b", &["a"]), ("a", &[])]);
        let stored = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<CheckedPlan>(&stored).unwrap(), plan);
        assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), *plan.plan());
        let order: Vec<&str> = plan.in_order().map(|step| step.id.as_str()).collect();
        assert_eq!(order, ["a", "b"]);
    }

    #[test]
    fn stored_plans_without_structure_are_refused() {
        let step = |id: &str, needs: &str| json!({"id": id, "tool": "t", "args": {}, "depends_on": [needs]});
        let stored = json!({"steps": [step("a", "b"), step("b", "a")]});
        let error = serde_json::from_value::<CheckedPlan>(stored).unwrap_err();
        assert!(error.to_string().contains("cycle"), "{error}");
    }
}
