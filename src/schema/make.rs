//! Makes [steps](Step) on a copy: in which order, what is tried instead of one that is refused, how indexes are built,
//! and what is left. Whoever asks for it says how a command reaches the copy and what of it may be done now: [`Target`].
//!
//! What can be built is built at the end, all at once, which reads the collection once; and what tightens comes behind
//! everything else.

use std::fmt;

use bson::{RawDocument, RawDocumentBuf};

use super::{Step, build_command, index_names};
use crate::model::namespace::Namespace;

/// What differs and stays so for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The step that is not made, in its own words; or what else is wrong.
    what: String,
    /// In the server's words.
    why: Option<String>,
}

impl Problem {
    /// Of a step that was refused.
    pub fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: Some(why.into()) }
    }

    /// Of something that is no step, or that no command changes.
    pub fn plain(what: impl Into<String>) -> Self {
        Self { what: what.into(), why: None }
    }

    /// True when it is this step that is not made.
    pub fn is_of(&self, step: &Step) -> bool {
        self.what == step.to_string()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.why {
            Some(why) => write!(f, "{}: {why}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// All of them in one line.
pub fn joined(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why a command is not run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRefusal {
    pub reason: String,
    /// It may be otherwise later, and is the same for every command until then.
    pub may_pass: bool,
}

impl StepRefusal {
    /// Of this command alone.
    pub fn of(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), may_pass: false }
    }
}

/// What became of a command. The outer error ends everything.
pub type StepResult<E> = Result<Result<(), StepRefusal>, E>;

/// Which indexes may be built now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Building {
    /// They wait.
    None,
    /// All at once, or none of them.
    AtOnce,
    /// All at once; where that is refused, one by one, so that one that cannot be built keeps none of the others away.
    OneByOne,
}

/// The copy on which steps are made.
pub trait Target: Send {
    /// Why it is no use to go on.
    type Stop: Send;

    fn ns(&self) -> &Namespace;

    /// Runs a command.
    fn run(
        &mut self,
        command: RawDocumentBuf,
    ) -> impl Future<Output = StepResult<Self::Stop>> + Send;

    /// Makes the collection or view.
    fn create(
        &mut self,
        step: &Step,
        options: &RawDocument,
    ) -> impl Future<Output = StepResult<Self::Stop>> + Send;

    /// Builds indexes.
    fn build(
        &mut self,
        specs: &[RawDocumentBuf],
    ) -> impl Future<Output = StepResult<Self::Stop>> + Send {
        let command = build_command(self.ns().coll(), specs, None);
        self.run(command)
    }

    /// False for a step that has to wait. Asked when its turn has come.
    fn may(&self, step: &Step) -> bool {
        let _ = step;
        true
    }

    fn building(&self) -> Building {
        Building::OneByOne
    }

    /// What differs, in words that fit the copy.
    fn say(&self, step: &Step) -> String {
        step.to_string()
    }

    /// The build of these begins.
    fn begins(&mut self, indexes: Vec<String>) {
        drop(indexes);
    }

    /// It has ended; `is_built` when none was refused.
    fn ended(&mut self, is_built: bool) {
        let _ = is_built;
    }
}

/// What is left of the steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub problems: Vec<Problem>,
    /// Something has to wait.
    pub waits: bool,
}

impl Left {
    /// True when nothing is.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Makes the steps.
///
/// # Errors
/// What the target ends it for.
pub async fn make<T: Target>(target: &mut T, steps: Vec<Step>) -> Result<Left, T::Stop> {
    let mut left = Left::default();
    let mut builds = Vec::new();
    let (behind, first): (Vec<_>, Vec<_>) = steps.into_iter().partition(Step::tightens);
    for step in first {
        builds.extend(take(target, step, &mut left).await?);
    }
    build(target, builds, &mut left).await?;
    for step in behind {
        take(target, step, &mut left).await?;
    }
    Ok(left)
}

/// An index that is to be built, with the words for it.
type Build = (String, RawDocumentBuf);

/// Makes one step, but for what it builds, which is returned.
async fn take<T: Target>(
    target: &mut T,
    step: Step,
    left: &mut Left,
) -> Result<Option<Build>, T::Stop> {
    let said = target.say(&step);
    if step.is_fixed() {
        left.problems.push(Problem::plain(said));
        return Ok(None);
    }
    if !target.may(&step) {
        left.waits = true;
        return Ok(None);
    }
    let mut taken = run_all(target, &step).await?;
    let mut step = step;
    if let Err(refusal) = &taken
        && let Some(instead) = step.instead(&refusal.reason)
    {
        taken = run_all(target, &instead).await?;
        step = instead;
    }
    match taken {
        Ok(()) => Ok(step.build().map(|spec| (said, spec.clone()))),
        Err(refusal) => {
            left.problems.push(Problem::refused(said, refusal.reason));
            Ok(None)
        }
    }
}

async fn run_all<T: Target>(target: &mut T, step: &Step) -> StepResult<T::Stop> {
    if let Step::Create { options } = step {
        return target.create(step, options).await;
    }
    for command in step.commands(target.ns().coll()) {
        if let Err(refusal) = target.run(command).await? {
            return Ok(Err(refusal));
        }
    }
    Ok(Ok(()))
}

async fn build<T: Target>(
    target: &mut T,
    builds: Vec<Build>,
    left: &mut Left,
) -> Result<(), T::Stop> {
    if builds.is_empty() {
        return Ok(());
    }
    if target.building() == Building::None {
        left.waits = true;
        return Ok(());
    }
    target.begins(index_names(builds.iter().map(|(_, spec)| spec)));
    let refused = build_each(target, &builds).await;
    target.ended(matches!(&refused, Ok(refused) if refused.is_empty()));
    left.problems.extend(refused?);
    Ok(())
}

async fn build_each<T: Target>(target: &mut T, builds: &[Build]) -> Result<Vec<Problem>, T::Stop> {
    let specs: Vec<_> = builds.iter().map(|(_, spec)| spec.clone()).collect();
    let Err(refusal) = target.build(&specs).await? else { return Ok(Vec::new()) };
    let is_each_alone = target.building() == Building::OneByOne && builds.len() > 1;
    if refusal.may_pass || !is_each_alone {
        let of = |(what, _): &Build| Problem::refused(what.as_str(), refusal.reason.as_str());
        return Ok(builds.iter().map(of).collect());
    }
    let mut refused = Vec::new();
    for (what, spec) in builds {
        if let Err(StepRefusal { reason, .. }) = target.build(std::slice::from_ref(spec)).await? {
            let is_aborted = reason.contains(BUILD_ABORTED);
            refused.push(Problem::refused(what.as_str(), reason));
            if is_aborted {
                break; // Dropped meanwhile: building the next would make the collection again.
            }
        }
    }
    Ok(refused)
}

/// What a server says of a build whose collection was dropped.
pub const BUILD_ABORTED: &str = "IndexBuildAborted";

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bson::rawdoc;
    use futures_util::FutureExt;

    use super::*;
    use crate::schema::{IndexChange, OptionChange};

    /// A copy that refuses what contains certain words, and notes the commands that it was given.
    struct Copy {
        ns: Namespace,
        refuses: Vec<(&'static str, &'static str)>,
        building: Building,
        may_tighten: bool,
        run: Vec<String>,
    }

    impl Copy {
        fn new(refuses: &[(&'static str, &'static str)]) -> Self {
            let (ns, refuses) = (Namespace::new("shop", "c"), refuses.to_vec());
            Self { ns, refuses, building: Building::OneByOne, may_tighten: true, run: Vec::new() }
        }

        /// What is left after these, and the commands, by name and index.
        fn after(mut self, steps: Vec<Step>) -> (Vec<String>, bool, Vec<String>) {
            let made = make(&mut self, steps).now_or_never().expect("it never waits");
            let Ok(left) = made;
            (left.problems.iter().map(ToString::to_string).collect(), left.waits, self.run)
        }
    }

    impl Target for Copy {
        type Stop = Infallible;

        fn ns(&self) -> &Namespace {
            &self.ns
        }

        async fn run(&mut self, command: RawDocumentBuf) -> StepResult<Infallible> {
            let text = bson::Document::try_from(command.as_ref()).unwrap().to_string();
            let (name, _) = command.iter().next().unwrap().unwrap();
            let index = |name: &&str| text.contains(&format!("\"{name}\""));
            let indexes: Vec<_> = ["a", "b"].into_iter().filter(index).collect();
            self.run.push(format!("{name} {}", indexes.join("")).trim_end().to_owned());
            let refused = self.refuses.iter().find(|(words, _)| text.contains(words));
            Ok(refused.map_or(Ok(()), |(_, reason)| Err(StepRefusal::of(*reason))))
        }

        async fn create(&mut self, _: &Step, _: &RawDocument) -> StepResult<Infallible> {
            self.run.push("create".to_owned());
            Ok(Ok(()))
        }

        fn may(&self, step: &Step) -> bool {
            self.may_tighten || !step.tightens()
        }

        fn building(&self) -> Building {
            self.building
        }
    }

    fn spec(name: &str) -> RawDocumentBuf {
        RawDocumentBuf::try_from(&bson::doc! { "key": { name: 1 }, "name": name }).unwrap()
    }

    fn builds() -> Vec<Step> {
        let of = |name| Step::Index(IndexChange::Create { spec: spec(name) });
        vec![of("a"), of("b")]
    }

    #[test]
    fn what_can_be_built_comes_last_but_for_what_tightens() {
        let mut steps = vec![Step::Index(IndexChange::Prepare { spec: spec("a") })];
        steps.extend(builds());
        steps.push(Step::Create { options: rawdoc! {} });
        let run = ["create", "createIndexes ab", "collMod a"];
        assert_eq!(
            Copy::new(&[]).after(steps.clone()),
            (vec![], false, run.map(Into::into).into())
        );

        let waiting = Copy { may_tighten: false, building: Building::None, ..Copy::new(&[]) };
        assert_eq!(waiting.after(steps), (vec![], true, vec!["create".into()]));
    }

    #[test]
    fn an_index_that_cannot_be_built_keeps_none_of_the_others_away() {
        let why = "index `a` is missing in Atlas: duplicates".to_owned();
        let run = ["createIndexes ab", "createIndexes a", "createIndexes b"];
        let copy = Copy::new(&[("\"a\"", "duplicates")]);
        assert_eq!(copy.after(builds()), (vec![why.clone()], false, run.map(Into::into).into()));

        let at_once = Copy { building: Building::AtOnce, ..Copy::new(&[("\"a\"", "duplicates")]) };
        let other = "index `b` is missing in Atlas: duplicates".to_owned();
        assert_eq!(at_once.after(builds()), (vec![why, other], false, vec![run[0].into()]));

        let dropped = Copy::new(&[("createIndexes", BUILD_ABORTED)]);
        let (problems, _, run) = dropped.after(builds());
        assert_eq!((problems.len(), run.len()), (1, 2), "the next would make it again");
    }

    #[test]
    fn what_no_command_changes_is_left_and_what_is_refused_is_tried_another_way() {
        let fixed = Step::Option(OptionChange::Fixed { option: "capped".into() });
        let modified = Step::Index(IndexChange::Modify { spec: spec("a"), changes: rawdoc! {} });
        let copy = Copy::new(&[("collMod", "Location40415: unknown field")]);

        let (problems, waits, run) = copy.after(vec![fixed.clone(), modified]);
        assert_eq!((problems, waits), (vec![fixed.to_string()], false));
        assert_eq!(run, ["collMod", "dropIndexes a", "createIndexes a"]);
    }

    #[test]
    fn a_problem_is_known_by_its_step() {
        let [a, b] = builds().try_into().unwrap();
        let problem = Problem::refused(a.to_string(), "duplicates");
        assert!(problem.is_of(&a) && !problem.is_of(&b));
    }
}
