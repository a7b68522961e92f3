#include "daemon/settings.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <optional>
#include <set>

#include "daemon/units.h"
#include "pkg/api/address.h"
#include "pkg/base/names.h"
#include "pkg/http/client.h"

namespace bim::daemon {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kSecond = 1'000;
constexpr uint64_t kHour = 3'600 * kSecond;
constexpr uint64_t kDay = 24 * kHour;
// Those below are for root's services.
constexpr uint16_t kFirstUserPort = 1024;

const std::string& Text(const Value& value) {
  return std::get<std::string>(value);
}
const std::vector<std::string>& List(const Value& value) {
  return std::get<std::vector<std::string>>(value);
}
uint64_t Number(const Value& value) { return std::get<uint64_t>(value); }
milliseconds Duration(const Value& value) {
  return std::get<milliseconds>(value);
}

base::Status Expected(std::string_view what, std::string_view found) {
  return base::InvalidArgumentError(
      fmt::format("expected {}, found \"{}\"", what, found));
}

bool IsAbsolutePath(std::string_view path) {
  return path.starts_with('/') && path.find('\0') == path.npos;
}

base::Status CheckPath(const Value& value) {
  if (IsAbsolutePath(Text(value))) return base::OkStatus();
  return Expected("an absolute path", Text(value));
}
base::Status CheckOptionalPath(const Value& value) {
  return Text(value).empty() ? base::OkStatus() : CheckPath(value);
}
base::Status CheckPaths(const Value& value) {
  std::set<std::string_view> seen;
  for (const std::string& path : List(value)) {
    if (!IsAbsolutePath(path)) return Expected("absolute paths", path);
    if (!seen.insert(path).second) return Expected("each path once", path);
  }
  return base::OkStatus();
}

base::Status CheckManagerId(const Value& value) {
  return Text(value).empty() ? base::OkStatus()
                             : base::CheckName(Text(value), "id");
}

base::Status CheckTcp(const std::string& text) {
  BIM_ASSIGN_OR_RETURN(const api::Address address, api::ParseAddress(text));
  if (!address.is_unix) return base::OkStatus();
  return Expected("a TCP address such as \"127.0.0.1:9500\"", text);
}
base::Status CheckListen(const Value& value) {
  for (const std::string& text : List(value)) {
    BIM_RETURN_IF_ERROR(CheckTcp(text));
  }
  return base::OkStatus();
}
base::Status CheckDataListen(const Value& value) {
  return Text(value).empty() ? base::OkStatus() : CheckTcp(Text(value));
}
base::Status CheckDiskUuid(const Value& value) {
  return Text(value).empty() ? base::OkStatus()
                             : base::CheckName(Text(value), "disk uuid");
}
base::Status CheckIpAddress(const Value& value) {
  const std::string& text = Text(value);
  if (text.empty() || IsIpAddress(text)) return base::OkStatus();
  return Expected("an IP address, or nothing", text);
}

struct PortRange {
  uint16_t first = 0;
  uint16_t last = 0;
};
std::optional<uint16_t> ParsePort(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size() ||
      port < kFirstUserPort) {
    return std::nullopt;
  }
  return port;
}
base::Result<PortRange> ParsePortRange(const std::string& text) {
  const size_t dash = std::min(text.find('-'), text.size());
  const auto first = ParsePort(std::string_view(text).substr(0, dash));
  const auto last =
      ParsePort(std::string_view(text).substr(std::min(dash + 1, text.size())));
  if (first && last && *first <= *last) return PortRange{*first, *last};
  return Expected(
      "two ports from 1024 to 65535, the smaller one first, such as "
      "\"30001-31000\"",
      text);
}
base::Status CheckPortRange(const Value& value) {
  return ParsePortRange(Text(value)).status();
}

base::Status CheckSocket(const Value& value) {
  const std::string& text = Text(value);
  if (text.empty()) return base::OkStatus();
  const auto address = api::ParseAddress(text);
  if (address.ok() && address->is_unix) return base::OkStatus();
  return Expected("\"unix:\" and an absolute path, or nothing", text);
}

base::Status CheckFileMode(const Value& value) {
  const uint64_t mode = Number(value);
  if ((mode & 0600) == 0600 && (mode & ~uint64_t{0666}) == 0) {
    return base::OkStatus();
  }
  return Expected(
      "permissions that let the owner read and write, and nobody "
      "execute, such as \"0644\" or \"0660\"",
      FormatFileMode(static_cast<uint32_t>(mode)));
}

base::Status CheckProxy(const Value& value) {
  const std::string& text = Text(value);
  if (text.empty() || text == "none") return base::OkStatus();
  for (std::string_view scheme :
       {"http://", "https://", "socks5://", "socks5h://"}) {
    if (text.starts_with(scheme) && text.size() > scheme.size()) {
      return base::OkStatus();
    }
  }
  return Expected("a URL such as \"http://proxy:3128\", or \"none\"",
                  http::RedactUrl(text));
}

// Of what is allowed to be 0.
base::Status CheckRate(const Value& value) {
  const uint64_t rate = Number(value);
  if (rate == 0 || rate >= manager::kMinRate) return base::OkStatus();
  return Expected(
      fmt::format("0 (no limit) or at least {}", FormatSize(manager::kMinRate)),
      FormatSize(rate));
}

base::Status CheckNetworks(const Value& value) {
  for (const std::string& text : List(value)) {
    if (!transfer::Network::Parse(text).ok()) {
      return Expected("networks such as \"10.0.0.0/8\" or \"fd00::/8\"", text);
    }
  }
  return base::OkStatus();
}

base::Status CheckOneOf(const Value& value,
                        std::initializer_list<std::string_view> words) {
  if (std::find(words.begin(), words.end(), Text(value)) != words.end()) {
    return base::OkStatus();
  }
  return Expected(fmt::format("one of {}", fmt::join(words, ", ")),
                  Text(value));
}
base::Status CheckLogLevel(const Value& value) {
  return CheckOneOf(value, {"trace", "debug", "info", "warn", "error", "off"});
}
base::Status CheckCompression(const Value& value) {
  return CheckOneOf(value, {"auto", "off", "on"});
}
base::Status CheckHandoverMode(const Value& value) {
  return CheckOneOf(value, {"manual", "auto"});
}
base::Status CheckLogFormat(const Value& value) {
  return CheckOneOf(value, {"text", "json"});
}

// Precondition: CheckNetworks.
std::vector<transfer::Network> Networks(const Value& value) {
  std::vector<transfer::Network> networks;
  for (const std::string& text : List(value)) {
    networks.push_back(*transfer::Network::Parse(text));
  }
  return networks;
}

// Precondition: CheckCompression.
transfer::WireCompression Compression(const Value& value) {
  using transfer::WireCompression;
  return Text(value) == "off"  ? WireCompression::kOff
         : Text(value) == "on" ? WireCompression::kOn
                               : WireCompression::kAuto;
}

const auto& Table() {
  static const std::array kTable = std::to_array<Setting>({
      {.section = "node",
       .key = "state_dir",
       .kind = Kind::kText,
       .default_text = "/var/lib/bim",
       .help = "Directory of the daemon's own state; one daemon each; empty: "
               "one that is removed at the end",
       .check = CheckOptionalPath,
       .store =
           [](const Value& v, Config& c) {
             c.state_dir = Text(v);
             c.ephemeral_state = c.state_dir.empty();
           }},
      {.section = "node",
       .key = "manager_id",
       .kind = Kind::kText,
       .default_text = "",
       .help = "Identity of this daemon; empty: generated once and kept in "
               "state_dir/manager-id",
       .check = CheckManagerId,
       .store = [](const Value& v, Config& c) { c.manager_id = Text(v); }},

      {.section = "api",
       .key = "listen",
       .kind = Kind::kList,
       .default_text = "127.0.0.1:9500",
       .help = "TCP addresses of the gRPC API, which is not authenticated; "
               "port 0: any free port",
       .check = CheckListen,
       .store = [](const Value& v, Config& c) { c.listen = List(v); },
       .short_flag = "--listen"},
      {.section = "api",
       .key = "socket",
       .kind = Kind::kText,
       .default_text = "unix:/run/bim/bim.sock",
       .help = "Unix socket of the gRPC API; empty: none",
       .check = CheckSocket,
       .store = [](const Value& v, Config& c) { c.socket = Text(v); }},
      {.section = "api",
       .key = "data_listen",
       .kind = Kind::kText,
       .default_text = "127.0.0.1:9501",
       .help = "TCP address where ready images are served by HTTP, without "
               "authentication; empty: off",
       .check = CheckDataListen,
       .store = [](const Value& v, Config& c) { c.data_listen = Text(v); }},

      {.section = "disks",
       .key = "paths",
       .kind = Kind::kList,
       .default_text = "",
       .help = "Disks of this node, besides those added with `bim disk add`",
       .check = CheckPaths,
       .store = [](const Value& v, Config& c) { c.disk_paths = List(v); },
       .short_flag = "--disk"},
      {.section = "disks",
       .key = "check_interval",
       .kind = Kind::kDuration,
       .default_text = "5s",
       .help = "How often each disk is looked at",
       .min = 50,
       .max = kHour,
       .store = [](const Value& v,
                   Config& c) { c.check_interval = Duration(v); }},
      {.section = "disks",
       .key = "file_mode",
       .kind = Kind::kFileMode,
       .default_text = "0644",
       .help = "Permissions of image files",
       .check = CheckFileMode,
       .store =
           [](const Value& v, Config& c) {
             c.file_mode = static_cast<uint32_t>(Number(v));
           }},

      {.section = "transfers",
       .key = "max",
       .kind = Kind::kCount,
       .default_text = "8",
       .help = "Transfers at once, on the whole node",
       .min = 1,
       .max = manager::kMaxTransfers,
       .store =
           [](const Value& v, Config& c) {
             c.limits.transfers = static_cast<uint32_t>(Number(v));
           }},
      {.section = "transfers",
       .key = "max_per_disk",
       .kind = Kind::kCount,
       .default_text = "4",
       .help = "Transfers at once, to one disk",
       .min = 1,
       .max = manager::kMaxTransfers,
       .store =
           [](const Value& v, Config& c) {
             c.limits.transfers_per_disk = static_cast<uint32_t>(Number(v));
           }},

      {.section = "limits",
       .key = "download_rate",
       .kind = Kind::kSize,
       .default_text = "0",
       .help = "Bytes a second of all downloads from URLs together; 0: no "
               "limit",
       .check = CheckRate,
       .store = [](const Value& v,
                   Config& c) { c.limits.download_rate = Number(v); }},
      {.section = "limits",
       .key = "peer_rate",
       .kind = Kind::kSize,
       .default_text = "0",
       .help = "Bytes a second received from peers, and as many sent by the "
               "data port; 0: no limit",
       .check = CheckRate,
       .store = [](const Value& v,
                   Config& c) { c.limits.peer_rate = Number(v); }},
      {.section = "limits",
       .key = "background_read_rate",
       .kind = Kind::kSize,
       .default_text = "0",
       .help = "Bytes a second read by verifications and scans; 0: no limit",
       .check = CheckRate,
       .store = [](const Value& v,
                   Config& c) { c.limits.background_read_rate = Number(v); }},

      {.section = "sources",
       .key = "allow_file",
       .kind = Kind::kBool,
       .default_text = "false",
       .help = "Whether file:// URLs are accepted as sources",
       .store = [](const Value& v,
                   Config& c) { c.transfer.allow_file = std::get<bool>(v); }},
      {.section = "sources",
       .key = "file_roots",
       .kind = Kind::kList,
       .default_text = "",
       .help = "With allow_file: only files below these directories; empty: "
               "any file",
       .check = CheckPaths,
       .store = [](const Value& v,
                   Config& c) { c.transfer.file_roots = List(v); }},
      {.section = "sources",
       .key = "proxy",
       .kind = Kind::kText,
       .default_text = "",
       .help = "Proxy URL for http and https; empty: http_proxy, https_proxy "
               "and no_proxy of the environment; \"none\": no proxy",
       .check = CheckProxy,
       .store = [](const Value& v, Config& c) { c.transfer.proxy = Text(v); }},
      {.section = "sources",
       .key = "no_proxy",
       .kind = Kind::kText,
       .default_text = "",
       .help = "With proxy: hosts that are reached directly, separated by "
               "commas",
       .store = [](const Value& v,
                   Config& c) { c.transfer.no_proxy = Text(v); }},
      {.section = "sources",
       .key = "ca_file",
       .kind = Kind::kText,
       .default_text = "",
       .help = "PEM file of the only CAs to trust for https; empty: the "
               "system's",
       .check = CheckOptionalPath,
       .store = [](const Value& v,
                   Config& c) { c.transfer.ca_file = Text(v); }},
      {.section = "sources",
       .key = "credentials_dir",
       .kind = Kind::kText,
       .default_text = "",
       .help = "Directory of credentials, NAME.headers and NAME.netrc; empty: "
               "none",
       .check = CheckOptionalPath,
       .store = [](const Value& v,
                   Config& c) { c.transfer.credentials_dir = Text(v); }},
      {.section = "sources",
       .key = "max_image_size",
       .kind = Kind::kSize,
       .default_text = "16TiB",
       .help = "The largest file accepted",
       .min = 512,
       .max = uint64_t{1} << 60,
       .store = [](const Value& v,
                   Config& c) { c.transfer.max_image_size = Number(v); }},
      {.section = "sources",
       .key = "connections",
       .kind = Kind::kCount,
       .default_text = "8",
       .help = "Connections of one download to its origin, at most",
       .min = 1,
       .max = 8,
       .store = [](const Value& v,
                   Config& c) { c.transfer.connections = Number(v); }},
      {.section = "sources",
       .key = "connect_timeout",
       .kind = Kind::kDuration,
       .default_text = "30s",
       .help = "From the name look-up to the end of the TLS handshake",
       .min = 10,
       .max = kDay,
       .store = [](const Value& v,
                   Config& c) { c.transfer.deadlines.connect = Duration(v); }},
      {.section = "sources",
       .key = "first_byte_timeout",
       .kind = Kind::kDuration,
       .default_text = "60s",
       .help = "From the request to the head of the answer",
       .min = 10,
       .max = kDay,
       .store =
           [](const Value& v, Config& c) {
             c.transfer.deadlines.first_byte = Duration(v);
           }},
      {.section = "sources",
       .key = "stall_timeout",
       .kind = Kind::kDuration,
       .default_text = "30s",
       .help = "Without a byte of the body",
       .min = 10,
       .max = kDay,
       .store = [](const Value& v,
                   Config& c) { c.transfer.deadlines.stall = Duration(v); }},
      {.section = "sources",
       .key = "min_rate",
       .kind = Kind::kSize,
       .default_text = "1024",
       .help = "Bytes a second, over min_rate_window, below which a transfer "
               "counts as stalled; 0: any rate will do",
       .max = uint64_t{1} << 40,
       .store = [](const Value& v,
                   Config& c) { c.transfer.deadlines.min_rate = Number(v); }},
      {.section = "sources",
       .key = "min_rate_window",
       .kind = Kind::kDuration,
       .default_text = "60s",
       .help = "Over which min_rate is averaged",
       .min = 10,
       .max = kDay,
       .store =
           [](const Value& v, Config& c) {
             c.transfer.deadlines.min_rate_window = Duration(v);
           }},
      {.section = "sources",
       .key = "retry_tries",
       .kind = Kind::kCount,
       .default_text = "5",
       .help = "Quick tries without progress before an attempt counts as "
               "failed",
       .min = 1,
       .max = 1000,
       .store =
           [](const Value& v, Config& c) {
             c.transfer.retry.max_tries = static_cast<int>(Number(v));
           }},
      {.section = "sources",
       .key = "retry_first",
       .kind = Kind::kDuration,
       .default_text = "1s",
       .help = "Wait before the first quick retry; it doubles each time",
       .min = 1,
       .max = kHour,
       .store = [](const Value& v,
                   Config& c) { c.transfer.retry.first = Duration(v); }},
      {.section = "sources",
       .key = "retry_max",
       .kind = Kind::kDuration,
       .default_text = "30s",
       .help = "The longest wait before a quick retry",
       .min = 1,
       .max = kHour,
       .store = [](const Value& v,
                   Config& c) { c.transfer.retry.max = Duration(v); }},

      {.section = "peers",
       .key = "trusted",
       .kind = Kind::kList,
       .default_text = "",
       .help = "Networks of daemons whose digests are believed: what they send "
               "is ready at once, and its SHA-512 computed afterwards",
       .check = CheckNetworks,
       .store = [](const Value& v,
                   Config& c) { c.transfer.peers.trusted = Networks(v); },
       .short_flag = "--trust-peers"},
      {.section = "peers",
       .key = "connections",
       .kind = Kind::kCount,
       .default_text = "4",
       .help = "Connections of one transfer to all its peers together",
       .min = 1,
       .max = 16,
       .store = [](const Value& v,
                   Config& c) { c.transfer.peers.connections = Number(v); }},
      {.section = "peers",
       .key = "compression",
       .kind = Kind::kText,
       .default_text = "auto",
       .help = "Whether bytes come compressed from peers: auto (when that is "
               "faster), off or on",
       .check = CheckCompression,
       .store =
           [](const Value& v, Config& c) {
             c.transfer.peers.compression = Compression(v);
           }},
      {.section = "peers",
       .key = "readers_per_image",
       .kind = Kind::kCount,
       .default_text = "3",
       .help = "Readers of one image over the data port at once; others wait "
               "their turn",
       .min = 1,
       .max = 64,
       .store = [](const Value& v,
                   Config& c) { c.readers_per_image = Number(v); }},

      {.section = "uploads",
       .key = "expiry",
       .kind = Kind::kDuration,
       .default_text = "24h",
       .help = "An upload to which nothing came for so long is dropped",
       .min = kSecond,
       .max = 365 * kDay,
       .store = [](const Value& v,
                   Config& c) { c.upload_expiry = Duration(v); }},

      {.section = "longhorn",
       .key = "sync_listen",
       .kind = Kind::kText,
       .default_text = "",
       .help = "TCP address of Longhorn's HTTP file service, without "
               "authentication; empty: off",
       .check = CheckDataListen,
       .store = [](const Value& v,
                   Config& c) { c.longhorn.sync_listen = Text(v); },
       .short_flag = "--sync-listen"},
      {.section = "longhorn",
       .key = "port_range",
       .kind = Kind::kText,
       .default_text = "30001-31000",
       .help = "Ports where files from other managers are received",
       .check = CheckPortRange,
       .store =
           [](const Value& v, Config& c) {
             const PortRange range = *ParsePortRange(Text(v));
             c.longhorn.port_first = range.first;
             c.longhorn.port_last = range.last;
           },
       .short_flag = "--port-range"},
      {.section = "longhorn",
       .key = "disk_uuid",
       .kind = Kind::kText,
       .default_text = "",
       .help = "The identity that the one disk must have at the start; empty: "
               "any",
       .check = CheckDiskUuid,
       .store = [](const Value& v,
                   Config& c) { c.longhorn.disk_uuid = Text(v); },
       .short_flag = "--disk-uuid"},
      {.section = "longhorn",
       .key = "advertise",
       .kind = Kind::kText,
       .default_text = "",
       .help = "IP address where other managers reach this one; empty: that "
               "of the interface lhnet1, else POD_IP of the environment",
       .check = CheckIpAddress,
       .store = [](const Value& v,
                   Config& c) { c.longhorn.advertise = Text(v); }},
      {.section = "longhorn",
       .key = "always_push",
       .kind = Kind::kBool,
       .default_text = "false",
       .help = "Whether managers of ours, too, are asked to push as Longhorn's "
               "do, to measure that; slower",
       .store = [](const Value& v,
                   Config& c) { c.longhorn.always_push = std::get<bool>(v); }},

      {.section = "handover",
       .key = "mode",
       .kind = Kind::kText,
       .default_text = "manual",
       .help = "When another process owns the disks at the start: manual waits "
               "until somebody begins a hand-over, auto takes them over",
       .check = CheckHandoverMode,
       .store = [](const Value& v,
                   Config& c) { c.handover.automatic = Text(v) == "auto"; },
       .short_flag = "--handover"},
      {.section = "handover",
       .key = "drain_timeout",
       .kind = Kind::kDuration,
       .default_text = "20s",
       .help = "How long downloads and uploads that run are waited for at a "
               "hand-over or a stop; what is not done then is resumed later",
       .min = 0,
       .max = kDay,
       .store = [](const Value& v,
                   Config& c) { c.handover.drain_timeout = Duration(v); },
       .short_flag = "--drain-timeout"},
      {.section = "handover",
       .key = "lease",
       .kind = Kind::kDuration,
       .default_text = "30s",
       .help = "A candidate that is silent for so long is taken to be down",
       .min = kSecond,
       .max = kDay,
       .store = [](const Value& v,
                   Config& c) { c.handover.lease = Duration(v); }},
      {.section = "handover",
       .key = "confirm_timeout",
       .kind = Kind::kDuration,
       .default_text = "20s",
       .help = "How long a confirmation waits for the other side",
       .min = 100,
       .max = kDay,
       .store = [](const Value& v,
                   Config& c) { c.handover.confirm_timeout = Duration(v); }},

      {.section = "backoff",
       .key = "first",
       .kind = Kind::kDuration,
       .default_text = "1m",
       .help = "Wait before a failed image is attempted again; it doubles each "
               "time",
       .min = 10,
       .max = kDay,
       .store = [](const Value& v,
                   Config& c) { c.backoff_first = Duration(v); }},
      {.section = "backoff",
       .key = "max",
       .kind = Kind::kDuration,
       .default_text = "5m",
       .help = "The longest wait before a failed image is attempted again",
       .min = 10,
       .max = kDay,
       .store = [](const Value& v, Config& c) { c.backoff_max = Duration(v); }},

      {.section = "log",
       .key = "level",
       .kind = Kind::kText,
       .default_text = "info",
       .help = "trace, debug, info, warn, error or off",
       .check = CheckLogLevel,
       .store = [](const Value& v, Config& c) { c.log_level = Text(v); }},
      {.section = "log",
       .key = "format",
       .kind = Kind::kText,
       .default_text = "text",
       .help = "text, or json: one object a line",
       .check = CheckLogFormat,
       .store = [](const Value& v,
                   Config& c) { c.log_json = Text(v) == "json"; }},
  });
  return kTable;
}

std::string Upper(std::string_view text) {
  std::string upper(text);
  std::transform(upper.begin(), upper.end(), upper.begin(), [](char c) {
    return static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  });
  return upper;
}

std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (byte < 0x20 || byte == 0x7F) {
      quoted += fmt::format("\\u{:04x}", byte);
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

std::string FormatNumber(Kind kind, uint64_t number) {
  switch (kind) {
    case Kind::kSize:
      return FormatSize(number);
    case Kind::kDuration:
      return FormatDuration(milliseconds(static_cast<int64_t>(number)));
    case Kind::kFileMode:
      return FormatFileMode(static_cast<uint32_t>(number));
    default:
      return std::to_string(number);
  }
}

std::vector<std::string> SplitList(std::string_view text) {
  std::vector<std::string> items;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    std::string_view item = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    while (item.starts_with(' ')) item.remove_prefix(1);
    while (item.ends_with(' ')) item.remove_suffix(1);
    if (!item.empty()) items.emplace_back(item);
  }
  return items;
}

// Without limits and checks.
base::Result<Value> ReadText(const Setting& setting, std::string_view text) {
  switch (setting.kind) {
    case Kind::kText:
      return Value(std::string(text));
    case Kind::kList:
      return Value(SplitList(text));
    case Kind::kBool:
      if (text == "true") return Value(true);
      if (text == "false") return Value(false);
      break;
    case Kind::kCount: {
      uint64_t number = 0;
      auto [end, error] =
          std::from_chars(text.data(), text.data() + text.size(), number);
      if (error == std::errc() && end == text.data() + text.size()) {
        return Value(number);
      }
      break;
    }
    case Kind::kSize: {
      BIM_ASSIGN_OR_RETURN(const uint64_t bytes, ParseSize(text));
      return Value(bytes);
    }
    case Kind::kDuration: {
      BIM_ASSIGN_OR_RETURN(const milliseconds duration, ParseDuration(text));
      return Value(duration);
    }
    case Kind::kFileMode: {
      BIM_ASSIGN_OR_RETURN(const uint32_t mode, ParseFileMode(text));
      return Value(uint64_t{mode});
    }
  }
  return Expected(KindExample(setting.kind), text);
}

}  // namespace

std::string Setting::Name() const { return fmt::format("{}.{}", section, key); }
std::string Setting::EnvName() const {
  return fmt::format("BIM_{}_{}", Upper(section), Upper(key));
}
std::string Setting::FlagName() const {
  std::string flag = fmt::format("--{}-{}", section, key);
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

std::span<const Setting> Settings() { return Table(); }

std::vector<std::string> SectionNames() {
  std::vector<std::string> names;
  for (const Setting& setting : Settings()) {
    if (names.empty() || names.back() != setting.section) {
      names.emplace_back(setting.section);
    }
  }
  return names;
}

std::string_view KindExample(Kind kind) {
  switch (kind) {
    case Kind::kText:
      return "a text in quotes";
    case Kind::kList:
      return "a list of texts such as [\"a\", \"b\"]";
    case Kind::kBool:
      return "true or false";
    case Kind::kCount:
      return "a whole number";
    case Kind::kSize:
      return "a size such as 1048576, \"64GiB\" or \"500MB\"";
    case Kind::kDuration:
      return "a duration such as \"250ms\", \"30s\" or \"5m\"";
    case Kind::kFileMode:
      return "octal file permissions such as \"0644\"";
  }
  return "";
}

base::Status CheckValue(const Setting& setting, const Value& value) {
  std::optional<uint64_t> number;
  if (const auto* count = std::get_if<uint64_t>(&value)) number = *count;
  if (const auto* duration = std::get_if<milliseconds>(&value)) {
    number = static_cast<uint64_t>(duration->count());
  }
  if (number && (*number < setting.min || *number > setting.max)) {
    const std::string min = FormatNumber(setting.kind, setting.min);
    return base::InvalidArgumentError(
        fmt::format("expected {}, found {}",
                    setting.max == UINT64_MAX
                        ? fmt::format("at least {}", min)
                        : fmt::format("{} to {}", min,
                                      FormatNumber(setting.kind, setting.max)),
                    FormatNumber(setting.kind, *number)));
  }
  return setting.check ? setting.check(value) : base::OkStatus();
}

base::Result<Value> ParseText(const Setting& setting, std::string_view text) {
  BIM_ASSIGN_OR_RETURN(Value value, ReadText(setting, text));
  BIM_RETURN_IF_ERROR(CheckValue(setting, value));
  return value;
}

base::Result<Value> ParseList(const Setting& setting,
                              std::vector<std::string> items) {
  Value value(std::move(items));
  BIM_RETURN_IF_ERROR(CheckValue(setting, value));
  return value;
}

std::string FormatValue(const Setting& setting, const Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    return Quoted(*text);
  }
  if (const auto* list = std::get_if<std::vector<std::string>>(&value)) {
    std::vector<std::string> quoted;
    for (const std::string& item : *list) quoted.push_back(Quoted(item));
    return fmt::format("[{}]", fmt::join(quoted, ", "));
  }
  if (const auto* flag = std::get_if<bool>(&value)) {
    return *flag ? "true" : "false";
  }
  if (const auto* duration = std::get_if<milliseconds>(&value)) {
    return Quoted(FormatDuration(*duration));
  }
  const std::string number = FormatNumber(setting.kind, Number(value));
  const bool bare = setting.kind != Kind::kFileMode &&
                    number.find_first_not_of("0123456789") == number.npos;
  return bare ? number : Quoted(number);
}

bool IsIpAddress(const std::string& text) {
  in_addr v4;
  in6_addr v6;
  return inet_pton(AF_INET, text.c_str(), &v4) == 1 ||
         inet_pton(AF_INET6, text.c_str(), &v6) == 1;
}

bool IsLocalAddress(std::string_view text) {
  const auto address = api::ParseAddress(text);
  if (!address.ok()) return false;
  if (address->is_unix || address->host == "localhost") return true;
  in_addr v4;
  if (inet_pton(AF_INET, address->host.c_str(), &v4) == 1) {
    return (ntohl(v4.s_addr) >> 24) == 127;
  }
  in6_addr v6;
  return inet_pton(AF_INET6, address->host.c_str(), &v6) == 1 &&
         IN6_IS_ADDR_LOOPBACK(&v6);
}

}  // namespace bim::daemon
