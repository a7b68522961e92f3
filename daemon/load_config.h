// From file, environment and flags to one checked Config: defaults < file <
// environment < flags.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "daemon/config.h"
#include "daemon/config_file.h"
#include "daemon/settings.h"
#include "pkg/base/status.h"

namespace bim::daemon {

inline constexpr char kDefaultConfigPath[] = "/etc/bim/bim.toml";

using Environment = std::map<std::string, std::string>;

// A flag that was given: one text, or the items of a list.
struct FlagValue {
  std::string name;  // Setting::Name()
  std::vector<std::string> values;
};

// A setting's value and where it came from: "default", "/etc/bim/bim.toml:12",
// "environment BIM_LOG_LEVEL" or "flag --log-level".
struct EffectiveValue {
  Value value;
  std::string origin;
};

struct EffectiveConfig {
  Config config;
  std::string file;                    // that was read; empty: none
  std::vector<EffectiveValue> values;  // parallel to Settings()
  // What is allowed, but should be known.
  std::vector<std::string> warnings;
};

// Pure. A longhorn.sync_listen that a flag gives is Longhorn's command line:
// other defaults count (docs/configuration.md tells them), and each has the
// origin "default with --sync-listen".
// INVALID_ARGUMENT with every problem on a line of its own: the place,
// the key, what was expected and what was found. Environment variables that do
// not begin with the name of a section ("BIM_API_") are nobody's business, and
// neither are those that Kubernetes makes for a service of such a name.
base::Result<EffectiveConfig> MergeConfig(const std::optional<ConfigFile>& file,
                                          const Environment& environment,
                                          const std::vector<FlagValue>& flags);

// Fills an empty longhorn.advertise: with the IPv4 address of `interface` if it
// exists and has one, else with POD_IP of the environment; and longhorn.outside
// the other way round. Asks the kernel.
void FindAdvertised(const std::string& interface,
                    const Environment& environment, EffectiveConfig& effective);

// Blocks: reads the file, merges, and finds the address to advertise. The file
// is `path`, else that of BIM_CONFIG, else kDefaultConfigPath when it exists.
// INVALID_ARGUMENT as above; a named file that cannot be read is an error too.
base::Result<EffectiveConfig> LoadConfig(const std::string& path,
                                         const Environment& environment,
                                         const std::vector<FlagValue>& flags);

// The process's own environment.
Environment CurrentEnvironment();

}  // namespace bim::daemon
