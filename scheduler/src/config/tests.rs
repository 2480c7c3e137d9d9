use super::*;

fn file(rest: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}")
}

fn names(profile: &Profile) -> (Vec<&'static str>, Vec<(i64, &'static str)>) {
    (
        profile.filters.iter().map(|it| it.name()).collect(),
        profile.scores.iter().map(|(weight, it)| (*weight, it.name())).collect(),
    )
}

#[track_caller]
fn refused(rest: &str, expected: &str) {
    let error = Configuration::parse(&file(rest)).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn nothing_said_is_upstreams_default_profile() {
    let it = Configuration::parse(&file("")).unwrap();
    assert_eq!(it.profiles.len(), 1);
    let default = Profile::default();
    assert_eq!(&*it.profiles[0].name, &*default.name);
    assert_eq!(names(&it.profiles[0]), names(&default));
    assert_eq!(
        (it.initial_backoff, it.max_backoff),
        (Duration::from_secs(1), Duration::from_secs(10))
    );
}

#[test]
fn plugins_are_enabled_disabled_and_weighed() {
    let it = Configuration::parse(&file(
        "podMaxBackoffSeconds: 60
parallelism: 16
leaderElection: {leaderElect: true}
profiles:
- schedulerName: default-scheduler
- schedulerName: packing
  plugins:
    multiPoint:
      enabled: [{name: NodeAffinity, weight: 7}]
      disabled: [{name: ImageLocality}, {name: DefaultPreemption}]
    filter:
      enabled: [{name: NodePorts}]
      disabled: [{name: VolumeZone}]
    score:
      disabled: [{name: '*'}]
      enabled: [{name: NodeResourcesFit, weight: 5}, {name: ImageLocality}]
  pluginConfig:
  - name: NodeResourcesFit
    args:
      kind: NodeResourcesFitArgs
      apiVersion: kubescheduler.config.k8s.io/v1
      ignoredResourceGroups: [example.com]
      scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 3}]}
",
    ))
    .unwrap();
    let [default, packing] = &it.profiles[..] else { panic!("{it:?}") };
    assert!(default.post_filter.is_some() && packing.post_filter.is_none());
    let (filters, scores) = names(packing);
    assert_eq!(filters[0], "NodePorts", "what a point names comes first");
    assert!(!filters.contains(&"VolumeZone") && filters.contains(&"VolumeBinding"));
    assert_eq!(scores, [(5, "NodeResourcesFit"), (1, "ImageLocality")]);
    assert_eq!(it.max_backoff, Duration::from_secs(60));
}

#[test]
fn what_upstream_does_not_have_is_off_until_it_is_named() {
    let it = Configuration::parse(&file("")).unwrap();
    assert!(!it.profiles[0].looks_at_load());
    let named = "profiles: [{plugins: {score: {enabled: [{name: LoadAware, weight: 5}]}}}]";
    let it = Configuration::parse(&file(named)).unwrap();
    assert!(it.profiles[0].looks_at_load());
    assert!(names(&it.profiles[0]).1.contains(&(5, "LoadAware")));
    assert!(it.profiles[0].hints.is_none());
    let named = "profiles: [{plugins: {multiPoint: {enabled: [{name: DeschedulingHints}]}}, pluginConfig: \
                 [{name: DeschedulingHints, args: {targetThresholds: {cpu: 70}, intervalSeconds: 5}}]}]";
    let it = Configuration::parse(&file(named)).unwrap();
    let hints = it.profiles[0].hints.unwrap();
    assert!(it.profiles[0].looks_at_load());
    assert_eq!((hints.target_thresholds.cpu, hints.target_thresholds.memory), (70, 80));
    assert_eq!((hints.thresholds.cpu, hints.every), (50, Duration::from_secs(5)));
}

#[test]
fn bad_configuration_is_refused_with_its_place() {
    let error = Configuration::parse("kind: Pod\napiVersion: v1\n").unwrap_err().to_string();
    assert!(error.contains("expected kubescheduler.config.k8s.io/v1"), "{error}");
    refused("bogus: 1\n", "bogus");
    refused("podMaxBackoffSeconds: 0\n", "podMaxBackoffSeconds: must be from 1");
    refused("podInitialBackoffSeconds: 20\n", "greater than or equal");
    refused("extenders: [{urlPrefix: http://x}]\n", "extenders");
    refused("percentageOfNodesToScore: 101\n", "percentageOfNodesToScore: must be from 0 to 100");
    refused("profiles: [{}, {}]\n", "profiles[1].schedulerName: duplicate value");
    let plugins = |text: &str| format!("profiles: [{{plugins: {text}}}]\n");
    refused(&plugins("{multiPoint: {enabled: [{name: Mine}]}}"), "there is no plugin \"Mine\"");
    refused(&plugins("{filter: {enabled: [{name: ImageLocality}]}}"), "does not extend this point");
    refused(&plugins("{multiPoint: {disabled: [{name: PrioritySort}]}}"), "cannot be disabled");
    refused(
        &plugins("{score: {enabled: [{name: NodeAffinity, weight: -1}]}}"),
        "from 1 to 1000000",
    );
    refused(&plugins("{permit: {enabled: [{name: NodePorts}]}}"), "plugins.permit");
    let args = |name: &str, args: &str| {
        format!("profiles: [{{pluginConfig: [{{name: {name}, args: {args}}}]}}]\n")
    };
    refused(&args("NodePorts", "{}"), "takes no args");
    refused(&args("NodeResourcesFit", "{kind: FooArgs}"), "expected kind NodeResourcesFitArgs");
    refused(&args("NodeResourcesFit", "{scoringStrategy: {type: Best}}"), "scoringStrategy.type");
    refused(
        &args(
            "NodeResourcesFit",
            "{scoringStrategy: {type: RequestedToCapacityRatio, requestedToCapacityRatio: \
             {shape: [{utilization: 5, score: 1}, {utilization: 5, score: 2}]}}}",
        ),
        "increasing order",
    );
    refused(&args("InterPodAffinity", "{hardPodAffinityWeight: 101}"), "from 0 to 100, not 101");
    refused(
        &args(
            "PodTopologySpread",
            "{defaultConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: DoNotSchedule}]}",
        ),
        "must be empty",
    );
    refused(
        &args(
            "DefaultPreemption",
            "{minCandidateNodesPercentage: 0, minCandidateNodesAbsolute: 0}",
        ),
        "cannot both be 0",
    );
    refused(
        &args("DeschedulingHints", "{thresholds: {memory: 90}}"),
        "thresholds.memory: must be from 1 to targetThresholds.memory, 80, not 90",
    );
    refused(&args("DeschedulingHints", "{targetThresholds: {cpu: 101}}"), "from 1 to 100, not 101");
    refused(&args("DeschedulingHints", "{intervalSeconds: 0}"), "from 1 to 86400, not 0");
    refused(
        "profiles: [{schedulerName: a, plugins: &p {multiPoint: {enabled: [{name: \
         DeschedulingHints}]}}}, {schedulerName: b, plugins: *p, pluginConfig: [{name: \
         DeschedulingHints, args: {intervalSeconds: 7}}]}]\n",
        "must be the same in all profiles",
    );
    refused(&args("VolumeBinding", "{bindTimeoutSeconds: -1}"), "from 0 to 86400");
}
