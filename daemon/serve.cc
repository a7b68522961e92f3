#include "daemon/serve.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "daemon/chosen_disks.h"
#include "daemon/hand_over.h"
#include "daemon/listeners.h"
#include "daemon/process.h"
#include "daemon/state_dir.h"
#include "pkg/api/data_server.h"
#include "pkg/api/node_server.h"
#include "pkg/api/peers.h"
#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/exec/event_loop.h"
#include "pkg/exec/worker_pool.h"
#include "pkg/http/server.h"
#include "pkg/io/dir.h"
#include "pkg/longhorn/callers.h"
#include "pkg/longhorn/file_service.h"
#include "pkg/longhorn/grpc_face.h"
#include "pkg/manager/manager.h"
#include "pkg/meta/version.h"
#include "pkg/store/disk.h"
#include "pkg/store/layout.h"

namespace bim::daemon {
namespace {

// Calls of the API that touch disks, and readers of the data port. Threads are
// started on demand and leave when idle.
constexpr size_t kApiThreads = 16;
constexpr size_t kDataThreads = 16;
// No bytes for so long, to or from a client of Longhorn's file service: given
// up.
constexpr std::chrono::seconds kSyncStall{30};
// For calls that are under way at the stop.
constexpr std::chrono::seconds kShutdownGrace{5};

// The disks that Longhorn's control plane counts on. Another one at the path,
// or none, must not be taken for it: the daemon does not start then.
base::Status CheckIdentities(const Config& config) {
  const std::string& expected = config.longhorn.disk_uuid;
  if (!config.longhorn_mode && expected.empty()) return base::OkStatus();
  for (const std::string& path : config.disk_paths) {
    BIM_ASSIGN_OR_RETURN(const io::Dir root, io::Dir::Open(path));
    const auto found = store::ReadIdentity(root);
    if (!found.ok() && found.status().code() == base::Code::kNotFound) {
      return base::FailedPreconditionError(
          fmt::format("no {} in {}: expected a disk of Longhorn there; is it "
                      "mounted?",
                      store::kIdentityFile, path));
    }
    if (!found.ok()) return found.status();
    if (!expected.empty() && *found != expected) {
      return base::FailedPreconditionError(
          fmt::format("expected disk {} at {}, found disk {} (by its {})",
                      expected, path, *found, store::kIdentityFile));
    }
  }
  return base::OkStatus();
}

manager::Options ManagerOptions(const Config& config, const StateDir& state,
                                const std::string& manager_id,
                                const Endpoints& bound) {
  manager::Options options;
  options.manager_id = manager_id;
  options.version = meta::Version();
  options.endpoint = bound.socket.empty() ? bound.api.front() : bound.socket;
  options.state_dir = state.path();
  options.disk_paths = config.disk_paths;
  options.limits = config.limits;
  options.readers_per_image = config.readers_per_image;
  options.upload_expiry = config.upload_expiry;
  options.backoff_first = config.backoff_first;
  options.backoff_max = config.backoff_max;
  options.disk_check_interval = config.check_interval;
  options.file_mode = config.file_mode;
  options.transfer = config.transfer;
  options.peers = std::make_shared<api::GrpcPeers>();
  options.pushers = longhorn::MakePushRequester();
  options.push_port_first = config.longhorn.port_first;
  options.push_port_last = config.longhorn.port_last;
  options.push_ip = config.longhorn.advertise;
  options.always_push = config.longhorn.always_push;
  return options;
}

std::string DescribeDisks(const std::vector<manager::DiskStatus>& disks) {
  if (disks.empty()) return "none";
  std::vector<std::string> texts;
  for (const manager::DiskStatus& disk : disks) {
    texts.push_back(fmt::format("{} ({})", disk.path, disk.state));
  }
  return fmt::format("{}", fmt::join(texts, ", "));
}

std::string DescribeEndpoints(const Endpoints& bound) {
  std::vector<std::string> api = bound.api;
  if (!bound.socket.empty()) api.push_back(bound.socket);
  const std::string sync =
      bound.sync.empty() ? "" : ", Longhorn's files on " + bound.sync;
  return fmt::format("API on {}, data on {}{}", fmt::join(api, ", "),
                     bound.data.empty() ? "nothing" : bound.data, sync);
}

// Longhorn's file service, and the data port for our own peers.
http::Handler SyncHandler(manager::Manager& manager) {
  return [files = longhorn::FileService(manager, {}),
          data = api::DataHandler(manager)](const http::Request& request) {
    return longhorn::IsFileServicePath(request) ? files(request)
                                                : data(request);
  };
}

// Nothing new; what runs has its time.
void Drain(manager::Manager& manager, std::chrono::milliseconds at_most) {
  manager.Hold("the daemon is stopping");
  if (!manager.AwaitIdle(at_most)) {
    BIM_LOG_INFO("what still runs is left resumable");
  }
}

handover::Party SelfAt(handover::Party self, const Endpoints& bound) {
  self.endpoint = bound.socket.empty() ? bound.api.front() : bound.socket;
  return self;
}

// From here on there are disks to give back. The locals are destroyed in the
// reverse of this order: what uses the manager ends before it.
// `take_over`: what this process took its disks over by; may be null.
base::Status RunManager(const Config& config, StateDir& state,
                        const handover::Party& self, Listeners listeners,
                        exec::EventLoop& loop, StopSignal& stop_signal,
                        std::unique_ptr<TakeOver> take_over,
                        const std::function<void()>& serving) {
  const Endpoints bound = listeners.bound;
  const std::string& manager_id = self.manager_id;
  BIM_ASSIGN_OR_RETURN(
      const std::unique_ptr<manager::Manager> manager,
      manager::Manager::Create(ManagerOptions(config, state, manager_id, bound),
                               loop));
  exec::WorkerPool api_pool("bim-api", kApiThreads);
  exec::WorkerPool data_pool("bim-data", kDataThreads);
  manager->Start();
  const std::unique_ptr<HandOver> hand_over = HandOver::Start(
      {.config = config.handover,
       .self = SelfAt(self, bound),
       .ephemeral = config.ephemeral_state && config.manager_id.empty()},
      *manager, state, stop_signal, std::move(listeners.kept));

  std::unique_ptr<http::Server> data_server;
  if (listeners.data) {
    BIM_ASSIGN_OR_RETURN(
        data_server,
        http::Server::Start(loop, data_pool, std::move(listeners.data),
                            api::DataHandler(*manager), {}));
  }
  std::unique_ptr<http::Server> sync_server;
  if (listeners.sync) {
    http::Server::Options options;
    options.send_timeout = kSyncStall;
    BIM_ASSIGN_OR_RETURN(
        sync_server,
        http::Server::Start(loop, data_pool, std::move(listeners.sync),
                            SyncHandler(*manager), options));
  }
  api::NodeServer::Options server_options;
  server_options.manager_id = manager_id;
  server_options.data_endpoint = bound.data;
  server_options.hand_over = hand_over.get();
  const auto longhorn_face =
      longhorn::GrpcFace::Make({.download_port = listeners.sync_port,
                                .download_host = config.longhorn.outside},
                               *manager, loop, api_pool);
  server_options.services.push_back(
      {&longhorn_face->service(),
       [&](auto deadline) { longhorn_face->Close(deadline); }});
  BIM_ASSIGN_OR_RETURN(
      const std::unique_ptr<api::NodeServer> server,
      api::NodeServer::Start(server_options, *manager, loop, api_pool,
                             std::move(listeners.api)));
  BIM_RETURN_IF_ERROR(state.WriteEndpoints(bound));

  const std::string disks = DescribeDisks(manager->ListDisks());
  BIM_LOG_INFO("bim {} is ready: {}; disks: {}", meta::Version(),
               DescribeEndpoints(bound), disks);
  // (The main process of the service is this one, also when it took over.)
  sd_notifyf(0, "READY=1\nMAINPID=%d\nSTATUS=%s; disks: %s", getpid(),
             DescribeEndpoints(bound).c_str(), disks.c_str());
  if (take_over) {
    if (take_over->Finish()) BIM_LOG_INFO("hand-over: the disks are ours");
    take_over.reset();
  }
  if (serving) serving();

  stop_signal.Wait();
  if (!hand_over->handed_over()) {
    sd_notify(0, "STOPPING=1\nSTATUS=Stopping: transfers stay resumable");
    Drain(*manager, config.handover.drain_timeout);
    if (const base::Status removed = state.RemoveEndpoints(); !removed.ok()) {
      BIM_LOG_WARN("{}", removed.message());
    }
    manager->ForgetHandover();
  }
  hand_over->Close();
  // First, so that no request is waited for that waits for a disk's work.
  manager->BeginStop();
  server->Shutdown(kShutdownGrace);
  data_server.reset();
  sync_server.reset();
  manager->Stop();
  api_pool.Shutdown();
  data_pool.Shutdown();
  BIM_LOG_INFO("stopped");
  return base::OkStatus();
}

}  // namespace

base::Status Serve(const EffectiveConfig& effective,
                   const std::function<void()>& serving) {
  const Config& config = effective.config;
  PrepareProcess();
  BIM_RETURN_IF_ERROR(base::InitLog(config.log_level, config.log_json));
  for (const std::string& warning : effective.warnings) {
    BIM_LOG_WARN("{}", warning);
  }

  BIM_RETURN_IF_ERROR(CheckIdentities(config));
  exec::EventLoop loop;
  StopSignal stop_signal(loop);

  std::string manager_id = config.manager_id;
  std::unique_ptr<TakeOver> take_over;
  if (config.handover.automatic) {
    // Its state_dir may be in use by the daemon that is to be succeeded.
    if (manager_id.empty() && !config.ephemeral_state) {
      manager_id = StateDir::PeekManagerId(config.state_dir);
    }
    BIM_ASSIGN_OR_RETURN(const auto disks, ConfiguredDisks(config));
    std::vector<std::string> paths;
    for (const manager::ListedDisk& disk : disks) paths.push_back(disk.path);
    take_over = TakeOver::Make(
        config.handover,
        handover::Self(manager_id.empty() ? base::GenerateUuid() : manager_id,
                       ""),
        std::move(paths), stop_signal);
    if (!take_over->Await()) return base::OkStatus();
  }
  BIM_ASSIGN_OR_RETURN(StateDir state, config.ephemeral_state
                                           ? StateDir::OpenEphemeral()
                                           : StateDir::Open(config.state_dir));
  if (manager_id.empty()) {
    BIM_ASSIGN_OR_RETURN(manager_id, state.ManagerId());
  }
  BIM_ASSIGN_OR_RETURN(
      Listeners listeners,
      OpenListeners(config, take_over
                                ? take_over->TakeSockets()
                                : std::vector<handover::ListeningSocket>()));
  return RunManager(config, state, handover::Self(manager_id, ""),
                    std::move(listeners), loop, stop_signal,
                    std::move(take_over), serving);
}

}  // namespace bim::daemon
