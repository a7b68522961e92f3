#include <fmt/format.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "daemon/data_source.h"
#include "daemon/process.h"
#include "daemon/state_dir.h"
#include "pkg/api/address.h"
#include "pkg/api/listener.h"
#include "pkg/api/peers.h"
#include "pkg/base/log.h"
#include "pkg/exec/event_loop.h"
#include "pkg/exec/worker_pool.h"
#include "pkg/http/listen.h"
#include "pkg/http/server.h"
#include "pkg/io/dir.h"
#include "pkg/longhorn/callers.h"
#include "pkg/longhorn/data_source.h"
#include "pkg/longhorn/file_service.h"
#include "pkg/manager/manager.h"
#include "pkg/meta/version.h"
#include "pkg/store/disk.h"
#include "pkg/store/layout.h"

namespace bim::daemon {
namespace {

constexpr size_t kThreads = 8;
// No bytes for so long from who uploads: given up.
constexpr std::chrono::seconds kStall{30};

manager::DirectedSpec SpecOf(const DataSourcePlan& plan,
                             uint16_t receive_port) {
  manager::DirectedSpec spec;
  spec.name = plan.name;
  spec.uuid = plan.uuid;
  spec.sha512 = plan.sha512;
  if (plan.data_engine == DataEngine::kV2) spec.source.convert = "raw";
  switch (plan.type) {
    case SourceType::kDownload:
      spec.source.url = plan.url;
      break;
    case SourceType::kUpload:
      spec.source.upload = true;
      break;
    case SourceType::kExportFromVolume:
      spec.source.receive_port = receive_port;
      spec.source.volume = transfer::VolumeExport{
          http::JoinHostPort(plan.sender_host, plan.sender_port),
          plan.snapshot_name, plan.sync_timeout, plan.volume_size.value_or(0)};
      // What comes are always raw bytes; a v2 volume's data stays so.
      if (plan.data_engine == DataEngine::kV1) {
        spec.source.convert =
            plan.file_type == WantedFormat::kQcow2 ? "qcow2" : "";
      }
      break;
    case SourceType::kClone:
      spec.source.clone_name = plan.source_name;
      spec.source.clone_uuid = plan.source_uuid;
      break;
  }
  return spec;
}

}  // namespace

base::Status RunDataSource(const DataSourceCommand& command,
                           const DataSourcePlan& plan,
                           const EffectiveConfig& effective) {
  const Config& config = effective.config;
  PrepareProcess();
  BIM_RETURN_IF_ERROR(base::InitLog(command.debug ? "debug" : config.log_level,
                                    config.log_json));
  for (const std::string& warning : effective.warnings) {
    BIM_LOG_WARN("{}", warning);
  }
  std::string disk_path = command.disk_path;
  while (disk_path.size() > 1 && disk_path.back() == '/') disk_path.pop_back();
  {
    BIM_ASSIGN_OR_RETURN(const io::Dir root, io::Dir::Open(disk_path));
    BIM_RETURN_IF_ERROR(store::ReadIdentity(root).status());
  }
  uint16_t receive_port = 0;
  std::string receive_ip = config.longhorn.advertise;
  if (plan.type == SourceType::kExportFromVolume) {
    BIM_ASSIGN_OR_RETURN(const api::Address address,
                         api::ParseAddress(command.receive_listen));
    receive_port = address.port;
    if (!address.host.empty()) receive_ip = address.host;
  }
  BIM_ASSIGN_OR_RETURN(const StateDir state, StateDir::OpenEphemeral());
  BIM_ASSIGN_OR_RETURN(api::Listener listener, api::Listen(command.listen));
  BIM_ASSIGN_OR_RETURN(api::Listener sync_listener,
                       api::Listen(command.sync_listen));

  exec::EventLoop loop;
  StopSignal stop_signal(loop);
  const store::ImageKey key{plan.name, plan.uuid, store::Place::kDataSource};
  manager::Options options;
  BIM_ASSIGN_OR_RETURN(options.manager_id, state.ManagerId());
  options.version = meta::Version();
  options.endpoint = listener.address;
  options.state_dir = state.path();
  options.disk_paths = {disk_path};
  options.limits = config.limits;
  options.upload_expiry = config.upload_expiry;
  options.disk_check_interval = config.check_interval;
  options.file_mode = config.file_mode;
  options.transfer = config.transfer;
  options.peers = std::make_shared<api::GrpcPeers>();
  options.pushers = longhorn::MakePushRequester();
  options.push_ip = receive_ip;
  options.data_source = key;
  BIM_ASSIGN_OR_RETURN(const std::unique_ptr<manager::Manager> manager,
                       manager::Manager::Create(std::move(options), loop));
  exec::WorkerPool pool("bim-http", kThreads);
  manager->Start();

  longhorn::DataSource::Options source_options;
  source_options.spec = SpecOf(plan, receive_port);
  source_options.type = command.source_type;
  source_options.parameters = command.parameters;
  source_options.file_path = disk_path + "/" + store::DataFile(key);
  const auto source =
      longhorn::DataSource::Make(std::move(source_options), *manager);
  http::Server::Options server_options;
  server_options.send_timeout = kStall;
  BIM_ASSIGN_OR_RETURN(std::unique_ptr<http::Server> server,
                       http::Server::Start(loop, pool, std::move(listener.fd),
                                           source->Handler(), server_options));
  BIM_ASSIGN_OR_RETURN(
      std::unique_ptr<http::Server> sync_server,
      http::Server::Start(
          loop, pool, std::move(sync_listener.fd),
          longhorn::FileService(*manager, {.data_source = true}),
          server_options));
  BIM_LOG_INFO("data source of {} ({}) on {}, files on {}: {} into {}/{}",
               plan.name, plan.uuid, listener.address, sync_listener.address,
               command.source_type, disk_path, store::DataFile(key));
  source->Begin();

  stop_signal.Wait();
  manager->BeginStop();
  server.reset();
  sync_server.reset();
  manager->Stop();
  pool.Shutdown();
  return base::OkStatus();
}

}  // namespace bim::daemon
