#include "pkg/exec/worker_pool.h"

#include <pthread.h>

#include <chrono>
#include <system_error>
#include <utility>

namespace bim::exec {
namespace {
constexpr std::chrono::seconds kIdle{10};
}

WorkerPool::WorkerPool(std::string name, size_t max_threads)
    : name_(std::move(name)), max_threads_(max_threads) {}

WorkerPool::~WorkerPool() { Shutdown(); }

void WorkerPool::Reap(std::unique_lock<std::mutex>& lock) {
  std::vector<std::thread> finished = std::move(finished_);
  finished_.clear();
  lock.unlock();
  for (std::thread& thread : finished) thread.join();
  lock.lock();
}

bool WorkerPool::Submit(std::function<void()> work) {
  std::unique_lock lock(mutex_);
  if (stopping_) return false;
  if (!finished_.empty()) Reap(lock);
  if (stopping_) return false;
  queue_.push_back(std::move(work));
  if (queue_.size() > idle_ && threads_.size() < max_threads_) {
    try {
      std::thread thread([this] { Run(); });
      const std::thread::id id = thread.get_id();
      threads_.emplace(id, std::move(thread));
    } catch (const std::system_error&) {
      // The system gives no more: those that are there take it in turn.
      if (threads_.empty()) {
        queue_.pop_back();
        return false;
      }
    }
  }
  wake_.notify_one();
  return true;
}

void WorkerPool::Run() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  std::unique_lock lock(mutex_);
  while (true) {
    if (queue_.empty()) {
      if (stopping_) return;
      ++idle_;
      const bool woken = wake_.wait_for(
          lock, kIdle, [this] { return stopping_ || !queue_.empty(); });
      --idle_;
      if (!woken) {
        auto self = threads_.find(std::this_thread::get_id());
        finished_.push_back(std::move(self->second));
        threads_.erase(self);
        return;
      }
      continue;
    }
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;  // what it holds is let go outside the lock
    lock.lock();
  }
}

void WorkerPool::Shutdown() {
  std::unique_lock lock(mutex_);
  if (stopping_) {
    // Another call is at it, or was: what runs is waited for all the same.
    wake_.wait(lock, [this] { return stopped_; });
    return;
  }
  stopping_ = true;
  std::deque<std::function<void()>> dropped = std::move(queue_);
  queue_.clear();
  wake_.notify_all();
  std::unordered_map<std::thread::id, std::thread> threads =
      std::move(threads_);
  threads_.clear();
  std::vector<std::thread> finished = std::move(finished_);
  finished_.clear();
  lock.unlock();
  for (auto& [id, thread] : threads) thread.join();
  for (std::thread& thread : finished) thread.join();
  dropped.clear();
  lock.lock();
  stopped_ = true;
  wake_.notify_all();
}

}  // namespace bim::exec
