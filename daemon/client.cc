#include "daemon/client.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "daemon/export_file.h"
#include "daemon/follow.h"
#include "daemon/interrupt.h"
#include "daemon/longhorn_client.h"
#include "daemon/progress_line.h"
#include "daemon/render.h"
#include "daemon/upload_file.h"
#include "pkg/api/address.h"
#include "pkg/meta/version.h"

namespace bim::daemon {
namespace {

using Json = nlohmann::ordered_json;

void Print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (!text.ends_with('\n')) std::fputc('\n', stdout);
}

void PrintJson(const google::protobuf::Message& message) {
  Print(ToJson(message, /*indented=*/true));
}

// Everything but letters, digits and "-._~" as %XX.
std::string PercentEncode(std::string_view text) {
  std::string encoded;
  for (const char c : text) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
        (c >= '0' && c <= '9') ||
        std::string_view("-._~").find(c) != std::string_view::npos;
    if (plain) {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return encoded;
}

bool HasReadyCopyOn(const v1::Image& image, const std::string& disk) {
  return std::any_of(
      image.copies().begin(), image.copies().end(), [&](const v1::Copy& copy) {
        return copy.state() == "ready" &&
               (copy.disk_uuid() == disk || copy.disk_path() == disk);
      });
}

// The data port as this client reaches it: one that listens on all addresses
// is on the host of the API.
std::string DataHost(const std::string& data_endpoint,
                     const std::string& api_address) {
  auto data = api::ParseAddress(data_endpoint);
  if (!data.ok()) return data_endpoint;
  if (data->host.empty() || data->host == "0.0.0.0" || data->host == "::") {
    const auto api = api::ParseAddress(api_address);
    data->host = api.ok() && !api->is_unix && !api->host.empty() ? api->host
                                                                 : "127.0.0.1";
  }
  return api::ToString(*data);
}

v1::VersionGetResponse ClientVersion() {
  v1::VersionGetResponse version;
  version.set_version(meta::Version());
  version.set_git_commit(meta::GitCommit());
  version.set_build_date(meta::BuildDate());
  version.set_api_version(meta::kApiVersion);
  version.set_api_min_version(meta::kApiMinVersion);
  version.set_disk_format_version(meta::kDiskFormatVersion);
  version.set_disk_format_min_version(meta::kDiskFormatMinVersion);
  return version;
}

std::string VersionLine(std::string_view who,
                        const v1::VersionGetResponse& version) {
  return fmt::format(
      "{}: {} (commit {}, built {}), API {} to {}, disk format {} to {}\n", who,
      version.version(), version.git_commit(), version.build_date(),
      version.api_min_version(), version.api_version(),
      version.disk_format_min_version(), version.disk_format_version());
}

CommandEnd GetVersion(Connection& connection, v1::VersionGetResponse& version) {
  return connection.Call(connection.version(),
                         &v1::VersionService::Stub::VersionGet,
                         v1::VersionGetRequest(), version);
}

std::string AddressOf(const ClientOptions& options) {
  return options.address.empty() ? DefaultAddress() : options.address;
}

std::optional<Connection::Clock::time_point> DeadlineOf(
    const ClientOptions& options) {
  if (!options.timeout) return std::nullopt;
  return Connection::Clock::now() + *options.timeout;
}

// Commands that take long and have something to tidy up or to say when they
// are interrupted.
bool Waits(const Command& command) {
  const auto* ensure = std::get_if<ImageEnsureCommand>(&command);
  const auto* handover = std::get_if<HandoverCommand>(&command);
  return (ensure && ensure->wait) || (handover && handover->watch) ||
         std::holds_alternative<ImageUploadCommand>(command) ||
         std::holds_alternative<ImageWatchCommand>(command) ||
         std::holds_alternative<ImageVerifyCommand>(command) ||
         std::holds_alternative<ImageExportCommand>(command);
}

// One command each; `operator()` runs it.
class Runner {
 public:
  // `interrupt` is there for the commands for which Waits() is true.
  Runner(Connection& connection, const Interrupt* interrupt,
         OutputFormat output)
      : connection_(connection), interrupt_(interrupt), output_(output) {}

  CommandEnd operator()(const ImageEnsureCommand& command) {
    v1::EnsureRequest request = RequestFor(command);
    v1::ImageSpec& spec = *request.mutable_spec();
    spec.mutable_source()->set_url(command.url);
    spec.mutable_source()->set_credential(command.credential);
    for (const std::string& peer : command.peers) {
      spec.mutable_source()->add_peers(peer);
    }
    spec.mutable_source()->set_upload(command.upload);
    spec.set_size(command.size_bytes);
    v1::EnsureResponse response;
    CommandEnd end = EnsureImage(request, response);
    if (!end.ok()) return end;
    if (command.wait) {
      end = AwaitImage(connection_, *interrupt_, *response.mutable_image());
    }
    PrintEnsured(response, response.created() ? "" : "already wanted, ");
    return end;
  }

  CommandEnd operator()(const ImageUploadCommand& command) {
    v1::EnsureRequest request = RequestFor(command);
    request.mutable_spec()->mutable_source()->set_upload(true);
    v1::EnsureResponse response;
    CommandEnd end = EnsureImage(request, response);
    if (!end.ok()) return end;
    v1::Image& image = *response.mutable_image();
    std::string url;
    end = DataUrl(image.spec(), "upload", url);
    if (!end.ok()) return end;

    ProgressLine line;
    const base::Result<UploadResult> uploaded = UploadFile(
        url, command.file,
        [&](uint64_t done, uint64_t total) {
          line.Update({.label = command.name,
                       .done_bytes = done,
                       .total_bytes = total});
        },
        interrupt_->token());
    line.Clear();
    if (!uploaded.ok()) {
      return EndOfTransfer(uploaded.status(),
                           "; the same command goes on from there");
    }
    if (command.wait) {
      end = AwaitImage(connection_, *interrupt_, image);
    } else {
      // It is known by this name and uuid; what it is now is worth a look. The
      // daemon may have been restarted meanwhile: a new connection, then.
      const std::string name = image.spec().name();
      const std::string uuid = image.spec().uuid();
      for (int tries = 0; tries < 10; ++tries) {
        end = GetImage(name, uuid, image);
        if (end.exit_code != ExitCode::kUnreachable) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
      }
    }
    PrintEnsured(response, uploaded->was_ready
                               ? "nothing was sent, "
                               : fmt::format("{} of {} bytes sent, ",
                                             uploaded->sent, uploaded->size));
    return end;
  }

  CommandEnd operator()(const ImageGetCommand& command) {
    v1::Image image;
    const CommandEnd end = GetImage(command.name, command.uuid, image);
    if (!end.ok()) return end;
    if (json()) {
      PrintJson(image);
    } else {
      Print(RenderImage(image));
    }
    return {};
  }

  CommandEnd operator()(const ImageListCommand&) {
    v1::ListResponse all;
    v1::ListRequest request;
    request.set_page_size(1000);
    do {
      v1::ListResponse page;
      const CommandEnd end = connection_.Call(
          connection_.images(), &v1::ImageService::Stub::List, request, page);
      if (!end.ok()) return end;
      request.set_page_token(page.next_page_token());
      all.mutable_images()->MergeFrom(page.images());
    } while (!request.page_token().empty());
    if (json()) {
      Json list = Json::parse(ToJson(all, /*indented=*/false));
      list.erase("next_page_token");
      Print(list.dump(1));
    } else {
      Print(RenderImages(all));
    }
    return {};
  }

  CommandEnd operator()(const ImageWatchCommand& command) {
    return WatchImages(connection_, *interrupt_, command, output_);
  }

  CommandEnd operator()(const ImageRemoveCommand& command) {
    v1::RemoveRequest request;
    request.set_name(command.name);
    request.set_uuid(command.uuid);
    request.set_force(command.force);
    v1::RemoveResponse response;
    const CommandEnd end =
        connection_.Call(connection_.images(), &v1::ImageService::Stub::Remove,
                         request, response);
    if (!end.ok()) return end;
    if (json()) {
      PrintJson(response);
    } else {
      Print(fmt::format("{}: removed", command.name));
    }
    return {};
  }

  CommandEnd operator()(const ImageVerifyCommand& command) {
    return VerifyImage(connection_, *interrupt_, command, output_);
  }

  CommandEnd operator()(const ImageExportCommand& command) {
    v1::Image image;
    CommandEnd end = GetImage(command.name, command.uuid, image);
    if (!end.ok()) return end;
    const auto digest = base::Digest::FromHex(base::DigestAlgorithm::kSha512,
                                              image.current_sha512());
    if (!digest.ok()) {
      return {ExitCode::kRefused,
              fmt::format("image {} has no ready copy to export: it is {}",
                          command.name, OneLine(RenderState(image)))};
    }
    if (!command.disk.empty() && !HasReadyCopyOn(image, command.disk)) {
      return {ExitCode::kNotFound,
              fmt::format("image {} has no ready copy on disk {}", command.name,
                          command.disk)};
    }
    http::GetRequest request;
    end = DataUrl(image.spec(), "data", request.url);
    if (!end.ok()) return end;
    std::vector<std::string> query;
    if (!command.disk.empty()) {
      query.push_back("disk=" + PercentEncode(command.disk));
    }
    if (command.zstd) query.push_back("encoding=zstd");
    if (!query.empty()) {
      request.url += fmt::format("?{}", fmt::join(query, "&"));
    }
    request.proxy = "none";

    ProgressLine line;
    const base::Status status = Export(
        request, *digest, image.size(),
        {.file = command.file, .force = command.force, .zstd = command.zstd},
        [&](uint64_t bytes) {
          line.Update({.label = command.name,
                       .done_bytes = bytes,
                       .total_bytes = image.size()});
        },
        interrupt_->token());
    line.Clear();
    if (!status.ok()) return EndOfTransfer(status);
    if (command.file == "-") return {};
    if (json()) {
      Print(Json{{"file", command.file},
                 {"name", image.spec().name()},
                 {"uuid", image.spec().uuid()},
                 {"size", std::to_string(image.size())},
                 {"sha512", digest->Hex()}}
                .dump(1, ' ', false, Json::error_handler_t::replace));
    } else {
      Print(fmt::format("{}: exported to {}, {} bytes, SHA-512 checked",
                        command.name, command.file, image.size()));
    }
    return {};
  }

  CommandEnd operator()(const DiskListCommand&) {
    v1::ListDisksResponse response;
    const CommandEnd end =
        connection_.Call(connection_.disks(), &v1::DiskService::Stub::List,
                         v1::ListDisksRequest(), response);
    if (!end.ok()) return end;
    if (json()) {
      PrintJson(response);
    } else {
      Print(RenderDisks(response));
    }
    return {};
  }

  CommandEnd operator()(const DiskAddCommand& command) {
    v1::AddDiskRequest request;
    request.set_path(command.path);
    request.set_uuid(command.uuid);
    request.set_init(command.init);
    v1::AddDiskResponse response;
    const CommandEnd end = connection_.Call(
        connection_.disks(), &v1::DiskService::Stub::Add, request, response);
    if (!end.ok()) return end;
    if (json()) {
      PrintJson(response);
    } else {
      const v1::Disk& disk = response.disk();
      Print(fmt::format(
          "{} {}: {}{}", disk.path(), disk.uuid(), disk.state(),
          disk.message().empty() ? "" : ": " + OneLine(disk.message())));
    }
    return {};
  }

  CommandEnd operator()(const DiskRemoveCommand& command) {
    v1::RemoveDiskRequest request;
    request.set_disk(command.disk);
    request.set_force(command.force);
    v1::RemoveDiskResponse response;
    const CommandEnd end = connection_.Call(
        connection_.disks(), &v1::DiskService::Stub::Remove, request, response);
    if (!end.ok()) return end;
    if (json()) {
      PrintJson(response);
    } else {
      Print(fmt::format("{}: removed; what lies on it stays", command.disk));
    }
    return {};
  }

  CommandEnd operator()(const DiskAdoptCommand& command) {
    v1::AdoptDiskRequest request;
    request.set_disk(command.disk);
    request.set_dry_run(command.dry_run);
    v1::AdoptDiskResponse response;
    const CommandEnd end = connection_.Call(
        connection_.disks(), &v1::DiskService::Stub::Adopt, request, response);
    if (!end.ok()) return end;
    if (json()) {
      PrintJson(response);
    } else {
      Print(RenderAdopted(response, command.dry_run));
    }
    const auto broken = std::count_if(
        response.images().begin(), response.images().end(),
        [](const auto& image) { return image.result() == "broken"; });
    if (broken == 0) return {};
    return {ExitCode::kImageFailed,
            fmt::format("{} of {} are broken, and left alone", broken,
                        response.images_size())};
  }

  CommandEnd operator()(const DrainCommand& command) {
    v1::DrainRequest request;
    request.set_timeout_ms(static_cast<uint64_t>(command.at_most.count()));
    request.set_cancel(command.cancel);
    request.set_dry_run(command.dry_run);
    v1::DrainResponse response;
    const CommandEnd end =
        connection_.Call(*v1::HandoverService::NewStub(connection_.channel()),
                         &v1::HandoverService::Stub::Drain, request, response);
    if (!end.ok()) return end;
    if (json()) {
      PrintJson(response);
    } else {
      for (const std::string& line : response.running()) Print(line + "\n");
      Print(response.draining() ? "no new work is taken\n"
                                : "new work is taken\n");
    }
    if (command.cancel || command.dry_run || response.running_size() == 0) {
      return {};
    }
    return {ExitCode::kTimedOut,
            fmt::format("{} still run; no new work is taken",
                        response.running_size())};
  }

  CommandEnd operator()(const LimitsGetCommand&) {
    v1::GetLimitsResponse response;
    const CommandEnd end =
        connection_.Call(connection_.limits(), &v1::LimitService::Stub::Get,
                         v1::GetLimitsRequest(), response);
    if (!end.ok()) return end;
    PrintLimits(response);
    return {};
  }

  CommandEnd operator()(const LimitsSetCommand& command) {
    v1::SetLimitsRequest request;
    v1::Limits& limits = *request.mutable_limits();
    if (command.download_rate) limits.set_download_rate(*command.download_rate);
    if (command.peer_rate) limits.set_peer_rate(*command.peer_rate);
    if (command.background_read_rate) {
      limits.set_background_read_rate(*command.background_read_rate);
    }
    if (command.transfers) limits.set_transfers(*command.transfers);
    if (command.transfers_per_disk) {
      limits.set_transfers_per_disk(*command.transfers_per_disk);
    }
    v1::SetLimitsResponse response;
    const CommandEnd end = connection_.Call(
        connection_.limits(), &v1::LimitService::Stub::Set, request, response);
    if (!end.ok()) return end;
    PrintLimits(response);
    return {};
  }

  CommandEnd operator()(const HandoverCommand& command) {
    using Call = HandoverCommand::Call;
    using Service = v1::HandoverService;
    const auto stub = Service::NewStub(connection_.channel());
    switch (command.call) {
      case Call::kBegin: {
        v1::BeginHandoverRequest request;
        request.set_automatic(command.automatic);
        request.set_dry_run(command.dry_run);
        return Handover<v1::BeginHandoverResponse>(
            *stub, &Service::Stub::Begin, request,
            command.dry_run ? "the owner would be asked for its disks\n" : "",
            command.dry_run);
      }
      case Call::kConfirm: {
        v1::ConfirmHandoverRequest request;
        request.set_force(command.force);
        request.set_dry_run(command.dry_run);
        return Handover<v1::ConfirmHandoverResponse>(
            *stub, &Service::Stub::Confirm, request,
            command.dry_run ? "the disks would be the new manager's\n"
                            : "confirmed: the disks are the new manager's\n",
            command.dry_run);
      }
      case Call::kRollback: {
        v1::RollbackHandoverRequest request;
        request.set_dry_run(command.dry_run);
        return Handover<v1::RollbackHandoverResponse>(
            *stub, &Service::Stub::Rollback, request,
            command.dry_run ? "the disks would stay their owner's\n"
                            : "rolled back: the disks stay their owner's\n",
            command.dry_run);
      }
      case Call::kHistory: {
        v1::HandoverHistoryRequest request;
        request.set_limit(command.limit);
        v1::HandoverHistoryResponse response;
        const CommandEnd end =
            connection_.Call(*stub, &Service::Stub::History, request, response);
        if (!end.ok()) return end;
        if (json()) {
          PrintJson(response);
        } else {
          Print(RenderHandoverHistory(response));
        }
        return {};
      }
      case Call::kStatus:
        break;
    }
    if (command.watch) {
      return WatchHandover(connection_, *interrupt_, *stub, output_);
    }
    return Handover<v1::HandoverStatusResponse>(*stub, &Service::Stub::Status,
                                                v1::HandoverStatusRequest());
  }

  template <typename Other>
  CommandEnd operator()(const Other&) {
    std::abort();  // not for a connection
  }

 private:
  bool json() const { return output_ == OutputFormat::kJson; }

  static v1::EnsureRequest RequestFor(const WantedImage& wanted) {
    v1::EnsureRequest request;
    v1::ImageSpec& spec = *request.mutable_spec();
    spec.set_name(wanted.name);
    spec.set_uuid(wanted.uuid);
    spec.set_sha512(wanted.sha512);
    spec.set_sha256(wanted.sha256);
    for (const std::string& disk : wanted.disks) spec.add_disks(disk);
    if (wanted.all) spec.add_disks("all");
    return request;
  }

  CommandEnd EnsureImage(const v1::EnsureRequest& request,
                         v1::EnsureResponse& response) {
    return connection_.Call(connection_.images(),
                            &v1::ImageService::Stub::Ensure, request, response);
  }

  void PrintEnsured(const v1::EnsureResponse& response,
                    std::string_view remark) const {
    if (json()) {
      PrintJson(response);
      return;
    }
    const v1::Image& image = response.image();
    Print(fmt::format("{} {}: {}{}", image.spec().name(), image.spec().uuid(),
                      remark, OneLine(RenderState(image))));
  }

  // `done` is said when nothing goes on (any more), and of a dry run.
  template <typename Response, typename Request, typename Method>
  CommandEnd Handover(v1::HandoverService::Stub& stub, Method method,
                      const Request& request, std::string_view done = "",
                      bool dry_run = false) {
    Response response;
    const CommandEnd end = connection_.Call(stub, method, request, response);
    if (!end.ok()) return end;
    if (json()) {
      PrintJson(response);
      return {};
    }
    const bool none = response.handover().role().empty();
    if (!none || done.empty()) Print(RenderHandover(response.handover()));
    if (!done.empty() && (none || dry_run)) Print(std::string(done));
    return {};
  }

  // A GetLimitsResponse or SetLimitsResponse.
  template <typename Response>
  void PrintLimits(const Response& response) const {
    if (json()) {
      PrintJson(response);
    } else {
      Print(RenderLimits(response.limits()));
    }
  }

  // Where the data port has `resource` of an image.
  CommandEnd DataUrl(const v1::ImageSpec& spec, std::string_view resource,
                     std::string& url) {
    v1::VersionGetResponse version;
    const CommandEnd end = GetVersion(connection_, version);
    if (!end.ok()) return end;
    if (version.data_endpoint().empty()) {
      return {ExitCode::kRefused,
              "the daemon serves no data: api.data_listen is empty"};
    }
    url = fmt::format("http://{}/v1/images/{}/{}/{}",
                      DataHost(version.data_endpoint(), connection_.address()),
                      PercentEncode(spec.name()), PercentEncode(spec.uuid()),
                      resource);
    return {};
  }

  // Of a transfer over the data port that failed. `advice`: for one that was
  // ended from outside.
  CommandEnd EndOfTransfer(const base::Status& status,
                           std::string_view advice = {}) const {
    if (!interrupt_->requested()) {
      return {ExitCodeOf(status.code()), status.message()};
    }
    return interrupt_->timed_out()
               ? CommandEnd{ExitCode::kTimedOut,
                            fmt::format("timed out{}", advice)}
               : CommandEnd{ExitCode::kInterrupted,
                            fmt::format("interrupted{}", advice)};
  }

  CommandEnd GetImage(const std::string& name, const std::string& uuid,
                      v1::Image& image) {
    v1::GetRequest request;
    request.set_name(name);
    request.set_uuid(uuid);
    v1::GetResponse response;
    const CommandEnd end = connection_.Call(
        connection_.images(), &v1::ImageService::Stub::Get, request, response);
    if (end.ok()) image = response.image();
    return end;
  }

  Connection& connection_;
  const Interrupt* const interrupt_;
  const OutputFormat output_;
};

// Says what this program is even when no daemon answers.
CommandEnd ShowVersion(const ClientOptions& options,
                       const VersionCommand& command) {
  CommandEnd end;
  std::optional<v1::VersionGetResponse> server;
  if (!command.client_only) {
    std::unique_ptr<Connection> connection;
    end = Connection::Open(AddressOf(options), DeadlineOf(options), {},
                           connection);
    v1::VersionGetResponse answer;
    if (end.ok()) end = GetVersion(*connection, answer);
    if (end.ok()) server = answer;
  }
  if (options.output == OutputFormat::kJson) {
    Json version;
    version["client"] =
        Json::parse(ToJson(ClientVersion(), /*indented=*/false));
    // Those of a running daemon.
    version["client"].erase("manager_id");
    version["client"].erase("data_endpoint");
    version["server"] =
        server ? Json::parse(ToJson(*server, /*indented=*/false)) : Json();
    Print(version.dump(1));
    return end;
  }
  Print(VersionLine("client", ClientVersion()));
  if (server) {
    Print(VersionLine("server", *server));
    Print(fmt::format(
        "manager: {}, data: {}", server->manager_id(),
        server->data_endpoint().empty() ? "off" : server->data_endpoint()));
  }
  return end;
}

}  // namespace

CommandEnd RunClientCommand(const Invocation& invocation) {
  const ClientOptions& options = invocation.client;
  if (const auto* version = std::get_if<VersionCommand>(&invocation.command)) {
    return version->longhorn ? ShowLonghornVersion(options, *version)
                             : ShowVersion(options, *version);
  }
  if (const auto* call = std::get_if<LonghornCommand>(&invocation.command)) {
    return RunLonghornCommand(options, *call);
  }
  const auto deadline = DeadlineOf(options);
  // The others are over soon: there Ctrl-C may end the process where it stands.
  std::optional<Interrupt> interrupt;
  if (Waits(invocation.command)) interrupt.emplace(deadline);
  std::unique_ptr<Connection> connection;
  const CommandEnd end = Connection::Open(
      AddressOf(options), deadline,
      interrupt ? interrupt->token() : std::stop_token(), connection);
  if (!end.ok()) return end;
  return std::visit(
      Runner(*connection, interrupt ? &*interrupt : nullptr, options.output),
      invocation.command);
}

}  // namespace bim::daemon
