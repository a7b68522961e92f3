// A bounded pool of threads for work that blocks: curl, files, hashing.
//
// Threads are started when work waits and none is free, up to `max_threads`,
// and leave after being idle for 10 s, so that an idle daemon has none.
// Work runs in the order it was submitted, as far as threads are free. The
// queue is bounded only by what its users admit: each must have its own limit.
// Thread-safety: all functions from any thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace bim::exec {

class WorkerPool {
 public:
  // `name` (at most 15 characters) is shown as the thread's name.
  WorkerPool(std::string name, size_t max_threads);
  // As Shutdown().
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Runs `work` on some thread of the pool, later. False after Shutdown: the
  // work was dropped.
  bool Submit(std::function<void()> work);
  // Takes no new work, drops what has not begun, waits for what runs. The
  // caller cancels long work first. Not on a thread of the pool.
  void Shutdown();

 private:
  void Run();
  void Reap(std::unique_lock<std::mutex>& lock);

  const std::string name_;
  const size_t max_threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  std::unordered_map<std::thread::id, std::thread> threads_;
  std::vector<std::thread> finished_;  // ended, to be joined
  size_t idle_ = 0;
  bool stopping_ = false;
  bool stopped_ = false;  // Shutdown has joined everything
};

}  // namespace bim::exec
