#include "daemon/load_config.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <utility>

#include "daemon/suggest.h"
#include "pkg/base/names.h"
#include "pkg/base/unique_fd.h"
#include "pkg/io/dir.h"

namespace bim::daemon {
namespace {

constexpr size_t kMaxConfigFileSize = 1 << 20;
constexpr char kDefaultOrigin[] = "default";
// Where Longhorn's control plane mounts the one disk of a manager, and the
// network that it gives to data transfers.
constexpr char kLonghornDisk[] = "/data";
constexpr char kStorageInterface[] = "lhnet1";

// Index in Settings(), or -1.
int FindSetting(std::string_view name) {
  const auto settings = Settings();
  for (size_t i = 0; i < settings.size(); ++i) {
    if (settings[i].Name() == name) return static_cast<int>(i);
  }
  return -1;
}

std::string DescribeFileValue(const FileValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    return fmt::format("\"{}\"", *text);
  }
  if (std::holds_alternative<std::vector<std::string>>(value)) return "a list";
  if (const auto* flag = std::get_if<bool>(&value)) {
    return *flag ? "true" : "false";
  }
  if (const auto* number = std::get_if<int64_t>(&value)) {
    return fmt::format("the number {}", *number);
  }
  return std::get<OtherValue>(value).what;
}

// A value of the file for a setting: the type must fit, a number without its
// unit or quotes is no text.
base::Result<Value> ConvertFileValue(const Setting& setting,
                                     const FileValue& value) {
  if (setting.kind == Kind::kList) {
    if (const auto* list = std::get_if<std::vector<std::string>>(&value)) {
      return ParseList(setting, *list);
    }
  } else if (setting.kind == Kind::kBool) {
    if (const bool* flag = std::get_if<bool>(&value)) return Value(*flag);
  } else if (const auto* number = std::get_if<int64_t>(&value)) {
    if (*number >= 0 &&
        (setting.kind == Kind::kCount || setting.kind == Kind::kSize)) {
      const Value count(static_cast<uint64_t>(*number));
      BIM_RETURN_IF_ERROR(CheckValue(setting, count));
      return count;
    }
  } else if (const auto* text = std::get_if<std::string>(&value)) {
    if (setting.kind != Kind::kCount) return ParseText(setting, *text);
  }
  return base::InvalidArgumentError(fmt::format("expected {}, found {}",
                                                KindExample(setting.kind),
                                                DescribeFileValue(value)));
}

// What is wrong with a key that is no setting.
std::string UnknownKey(const FileEntry& entry) {
  const std::vector<std::string> sections = SectionNames();
  if (entry.section.empty()) {
    // A section written as a value, or a key that lost its section.
    if (std::find(sections.begin(), sections.end(), entry.key) !=
        sections.end()) {
      return fmt::format("{}: expected a section [{}], found {}", entry.key,
                         entry.key, DescribeFileValue(entry.value));
    }
    for (const Setting& setting : Settings()) {
      if (setting.key == entry.key) {
        return fmt::format(
            "{}: unknown key outside of a section; did you mean it in [{}]?",
            entry.key, setting.section);
      }
    }
    return fmt::format(
        "{}: unknown key outside of a section; expected "
        "sections: {}",
        entry.key, fmt::join(sections, ", "));
  }
  if (std::find(sections.begin(), sections.end(), entry.section) ==
      sections.end()) {
    const std::string nearest = Nearest(entry.section, sections);
    return fmt::format(
        "[{}]: unknown section; {}", entry.section,
        nearest.empty()
            ? fmt::format("expected one of {}", fmt::join(sections, ", "))
            : fmt::format("did you mean [{}]?", nearest));
  }
  std::vector<std::string> keys;
  std::string elsewhere;
  for (const Setting& setting : Settings()) {
    if (setting.section == entry.section) keys.emplace_back(setting.key);
    if (setting.key == entry.key) elsewhere = setting.Name();
  }
  std::string hint = DidYouMean(entry.key, keys);
  if (hint.empty() && !elsewhere.empty()) {
    hint = fmt::format("; did you mean {}?", elsewhere);
  }
  if (hint.empty())
    hint = fmt::format("; expected one of {}", fmt::join(keys, ", "));
  return fmt::format("{}.{}: unknown key{}", entry.section, entry.key, hint);
}

// Kubernetes puts BIM_API_SERVICE_HOST, BIM_API_PORT_9500_TCP ... into every
// container when there is a service called bim-api.
bool IsServiceLink(std::string_view name) {
  return name.find("_SERVICE_HOST") != name.npos ||
         name.find("_SERVICE_PORT") != name.npos || name.ends_with("_PORT") ||
         name.find("_PORT_") != name.npos;
}

bool NamesASection(std::string_view env_name) {
  for (const Setting& setting : Settings()) {
    const std::string full = setting.EnvName();
    if (env_name.starts_with(std::string_view(full).substr(
            0, full.size() - setting.key.size()))) {
      return true;
    }
  }
  return false;
}

class Merger {
 public:
  Merger() {
    for (const Setting& setting : Settings()) {
      auto value = ParseText(setting, setting.default_text);
      BIM_CHECK(value.ok());
      result_.values.push_back({*std::move(value), kDefaultOrigin});
    }
  }

  void AddFile(const ConfigFile& file) {
    result_.file = file.path;
    std::set<std::string> reported_sections;
    for (const FileEntry& entry : file.entries) {
      const std::string place = fmt::format("{}:{}", file.path, entry.line);
      const int index = FindSetting(entry.section + "." + entry.key);
      if (index >= 0) {
        Take(index, ConvertFileValue(Settings()[index], entry.value), place);
        continue;
      }
      const std::vector<std::string> sections = SectionNames();
      const bool known = std::find(sections.begin(), sections.end(),
                                   entry.section) != sections.end();
      if (known && entry.key.empty()) continue;  // an empty section
      if (!known && !entry.section.empty() &&
          !reported_sections.insert(entry.section).second) {
        continue;
      }
      problems_.push_back(fmt::format("{}: {}", place, UnknownKey(entry)));
    }
  }

  void AddEnvironment(const Environment& environment) {
    std::vector<std::string> names;
    for (const Setting& setting : Settings()) {
      names.push_back(setting.EnvName());
    }
    for (const auto& [name, text] : environment) {
      const auto found = std::find(names.begin(), names.end(), name);
      if (found != names.end()) {
        const auto index = static_cast<int>(found - names.begin());
        Take(index, ParseText(Settings()[index], text), "environment " + name);
      } else if (NamesASection(name) && !IsServiceLink(name)) {
        problems_.push_back(fmt::format("environment {}: unknown setting{}",
                                        name, DidYouMean(name, names)));
      }
    }
  }

  void AddFlags(const std::vector<FlagValue>& flags) {
    for (const FlagValue& flag : flags) {
      const int index = FindSetting(flag.name);
      BIM_CHECK(index >= 0 && !flag.values.empty());
      const Setting& setting = Settings()[index];
      Take(index,
           setting.kind == Kind::kList ? ParseList(setting, flag.values)
                                       : ParseText(setting, flag.values.back()),
           "flag " + setting.FlagName());
    }
  }

  base::Result<EffectiveConfig> Finish() && {
    const int sync_listen = FindSetting("longhorn.sync_listen");
    result_.config.longhorn_mode =
        result_.values[sync_listen].origin.starts_with("flag ") &&
        result_.values[sync_listen].value != Value(std::string());
    if (result_.config.longhorn_mode) UseLonghornDefaults();
    for (size_t i = 0; i < result_.values.size(); ++i) {
      Settings()[i].store(result_.values[i].value, result_.config);
    }
    CheckTogether();
    if (!problems_.empty()) {
      return base::InvalidArgumentError(
          fmt::format("{}", fmt::join(problems_, "\n")));
    }
    return std::move(result_);
  }

 private:
  void Take(int index, base::Result<Value> value, const std::string& origin) {
    if (!value.ok()) {
      problems_.push_back(fmt::format("{}: {}: {}", origin,
                                      Settings()[index].Name(),
                                      value.status().message()));
      return;
    }
    result_.values[index] = {*std::move(value), origin};
  }

  // Longhorn's command line names none of these.
  void UseLonghornDefaults() {
    const std::pair<std::string_view, Value> defaults[] = {
        {"node.state_dir", std::string()},
        {"api.socket", std::string()},
        {"api.data_listen", std::string()},
        {"disks.paths", std::vector<std::string>{kLonghornDisk}},
        {"handover.mode", std::string("auto")},
    };
    for (const auto& [name, value] : defaults) {
      EffectiveValue& effective = result_.values[FindSetting(name)];
      if (effective.origin == kDefaultOrigin) {
        effective = {value, "default with --sync-listen"};
      }
    }
  }

  const std::string& OriginOf(std::string_view name) const {
    return result_.values[FindSetting(name)].origin;
  }

  void CheckTogether() {
    const Config& config = result_.config;
    if (config.listen.empty() && config.socket.empty()) {
      problems_.push_back(fmt::format(
          "{}: api.listen: expected an address here or in api.socket, found "
          "neither: nobody could reach the daemon",
          OriginOf("api.listen")));
    }
    const size_t disks = config.disk_paths.size();
    if ((!config.longhorn.disk_uuid.empty() && disks != 1) ||
        (config.longhorn_mode && disks == 0)) {
      problems_.push_back(fmt::format(
          "{}: disks.paths: expected {}, found {}", OriginOf("disks.paths"),
          config.longhorn.disk_uuid.empty()
              ? "a disk"
              : "exactly one disk, whose uuid is longhorn.disk_uuid",
          disks));
    }
    CheckOrder("backoff.first", config.backoff_first, "backoff.max",
               config.backoff_max);
    CheckOrder("sources.retry_first", config.transfer.retry.first,
               "sources.retry_max", config.transfer.retry.max);
    for (const std::string& address : config.listen) {
      if (!IsLocalAddress(address)) {
        result_.warnings.push_back(fmt::format(
            "api.listen: {} is reachable from other nodes, and the API is not "
            "authenticated: guard it by a firewall or network policy",
            address));
      }
    }
    if (!config.data_listen.empty() && !IsLocalAddress(config.data_listen)) {
      result_.warnings.push_back(fmt::format(
          "api.data_listen: {} is reachable from other nodes, and everyone "
          "there can read every image, and bring those that are wanted as "
          "uploads",
          config.data_listen));
    }
    if (!config.longhorn.sync_listen.empty() &&
        !IsLocalAddress(config.longhorn.sync_listen)) {
      result_.warnings.push_back(fmt::format(
          "longhorn.sync_listen: {} is reachable from other nodes, and "
          "everyone there can read, bring and delete images",
          config.longhorn.sync_listen));
    }
    if (config.transfer.allow_file && config.transfer.file_roots.empty()) {
      result_.warnings.push_back(
          "sources.allow_file: every file that the daemon can read may be "
          "used as an image: set sources.file_roots");
    }
  }

  void CheckOrder(std::string_view first_name, std::chrono::milliseconds first,
                  std::string_view max_name, std::chrono::milliseconds max) {
    if (first <= max) return;
    const int index = FindSetting(first_name);
    problems_.push_back(fmt::format(
        "{}: {}: expected at most {} ({}), found {}", OriginOf(first_name),
        first_name, FormatValue(Settings()[index], max), max_name,
        FormatValue(Settings()[index], first)));
  }

  EffectiveConfig result_;
  std::vector<std::string> problems_;
};

// Follows links: a mounted ConfigMap is made of them.
base::Result<std::string> ReadConfigFile(const std::string& path) {
  const std::string what = "cannot read the configuration " + path;
  const base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return base::InvalidArgumentError(base::ErrnoError(errno, what).message());
  }
  std::string content(kMaxConfigFileSize + 1, '\0');
  auto size = io::PreadFull(fd.get(), content.data(), content.size(), 0, what);
  if (!size.ok()) return base::InvalidArgumentError(size.status().message());
  if (*size > kMaxConfigFileSize) {
    return base::InvalidArgumentError(what +
                                      ": expected at most 1 MiB, found more");
  }
  content.resize(*size);
  return content;
}

// The first IPv4 address of an interface, empty when there is none.
std::string Ipv4Of(std::string_view interface) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return "";
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(all,
                                                               &freeifaddrs);
  for (const ifaddrs* one = all; one; one = one->ifa_next) {
    if (!one->ifa_addr || one->ifa_addr->sa_family != AF_INET ||
        one->ifa_name != interface) {
      continue;
    }
    sockaddr_in address;
    std::memcpy(&address, one->ifa_addr, sizeof(address));
    char text[INET_ADDRSTRLEN] = {};
    if (inet_ntop(AF_INET, &address.sin_addr, text, sizeof(text))) return text;
  }
  return "";
}

}  // namespace

void FindAdvertised(const std::string& interface,
                    const Environment& environment,
                    EffectiveConfig& effective) {
  std::string& advertise = effective.config.longhorn.advertise;
  std::string& outside = effective.config.longhorn.outside;
  outside = advertise;
  if (!advertise.empty()) return;
  std::string origin = fmt::format("interface {}", interface);
  outside = advertise = Ipv4Of(interface);
  const auto pod_ip = environment.find("POD_IP");
  if (pod_ip != environment.end() && !pod_ip->second.empty()) {
    if (!IsIpAddress(pod_ip->second)) {
      effective.warnings.push_back(fmt::format(
          "environment POD_IP: expected an IP address, found \"{}\": ignored",
          base::Printable(pod_ip->second)));
    } else {
      outside = pod_ip->second;
      if (advertise.empty()) {
        origin = "environment POD_IP";
        advertise = pod_ip->second;
      }
    }
  }
  if (advertise.empty()) return;
  effective.values[FindSetting("longhorn.advertise")] = {advertise, origin};
}

base::Result<EffectiveConfig> MergeConfig(const std::optional<ConfigFile>& file,
                                          const Environment& environment,
                                          const std::vector<FlagValue>& flags) {
  Merger merger;
  if (file) merger.AddFile(*file);
  merger.AddEnvironment(environment);
  merger.AddFlags(flags);
  return std::move(merger).Finish();
}

base::Result<EffectiveConfig> LoadConfig(const std::string& path,
                                         const Environment& environment,
                                         const std::vector<FlagValue>& flags) {
  std::string chosen = path;
  if (chosen.empty()) {
    const auto named = environment.find("BIM_CONFIG");
    if (named != environment.end()) chosen = named->second;
  }
  if (chosen.empty() && access(kDefaultConfigPath, F_OK) == 0) {
    chosen = kDefaultConfigPath;
  }
  std::optional<ConfigFile> file;
  if (!chosen.empty()) {
    BIM_ASSIGN_OR_RETURN(const std::string content, ReadConfigFile(chosen));
    BIM_ASSIGN_OR_RETURN(file, ParseConfigFile(chosen, content));
  }
  BIM_ASSIGN_OR_RETURN(EffectiveConfig effective,
                       MergeConfig(file, environment, flags));
  FindAdvertised(kStorageInterface, environment, effective);
  return effective;
}

Environment CurrentEnvironment() {
  Environment environment;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string_view text(*entry);
    const size_t equals = text.find('=');
    if (equals == text.npos) continue;
    environment.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return environment;
}

}  // namespace bim::daemon
