//! The policies that are built in: presets, postures and tiers.

/// Presets by name: rules for well-known services and their real clients.
pub const PRESETS: [(&str, &str); 14] = [
    ("brave", include_str!("../../../policies/presets/brave.yaml")),
    ("brew", include_str!("../../../policies/presets/brew.yaml")),
    ("discord", include_str!("../../../policies/presets/discord.yaml")),
    ("docker", include_str!("../../../policies/presets/docker.yaml")),
    ("github", include_str!("../../../policies/presets/github.yaml")),
    ("github-push", include_str!("../../../policies/presets/github-push.yaml")),
    ("huggingface", include_str!("../../../policies/presets/huggingface.yaml")),
    ("jira", include_str!("../../../policies/presets/jira.yaml")),
    ("local-inference", include_str!("../../../policies/presets/local-inference.yaml")),
    ("npm", include_str!("../../../policies/presets/npm.yaml")),
    ("outlook", include_str!("../../../policies/presets/outlook.yaml")),
    ("pypi", include_str!("../../../policies/presets/pypi.yaml")),
    ("slack", include_str!("../../../policies/presets/slack.yaml")),
    ("telegram", include_str!("../../../policies/presets/telegram.yaml")),
];

/// Postures by name: whole policies to start from.
pub const POSTURES: [(&str, &str); 3] = [
    ("locked-down", include_str!("../../../policies/postures/locked-down.yaml")),
    ("development", include_str!("../../../policies/postures/development.yaml")),
    ("integration-testing", include_str!("../../../policies/postures/integration-testing.yaml")),
];

/// Tiers by name: choices of presets.
pub const TIERS: [(&str, &str); 3] = [
    ("restricted", include_str!("../../../policies/tiers/restricted.yaml")),
    ("balanced", include_str!("../../../policies/tiers/balanced.yaml")),
    ("open", include_str!("../../../policies/tiers/open.yaml")),
];

/// The mission's policy for a container that runs OpenClaw.
pub const OPENCLAW: &str = include_str!("../../../policies/openclaw.yaml");

fn of(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(own, _)| *own == name).map(|(_, text)| *text)
}

/// The text of a built-in preset.
pub fn preset(name: &str) -> Option<&'static str> {
    of(&PRESETS, name)
}

/// The text of a posture.
pub fn posture(name: &str) -> Option<&'static str> {
    of(&POSTURES, name)
}

/// The text of a built-in policy: the baseline, OpenClaw's, or a posture.
pub fn policy(name: &str) -> Option<&'static str> {
    match name {
        "baseline" => Some(super::BASELINE),
        "openclaw" => Some(OPENCLAW),
        _ => posture(name),
    }
}

/// The text of a tier.
pub fn tier(name: &str) -> Option<&'static str> {
    of(&TIERS, name)
}
