#!/usr/bin/env bash
# Every experiment of the paper (Riemer et al., ICLR 2019), for some seeds, side by side on all cores.
#
#   ./mer_examples.sh 0 1 2 3 4                          runs them; started again, it goes on where it stopped
#   ./mer_examples.sh --list 0                           prints the full commands and runs nothing
#   ./mer_examples.sh 0 --learner meralg1,gem --data rotations --memories 5120
#   ./mer_examples.sh --help                             the rest: --jobs, --ray, --grid, …
#   ./mer_examples.sh --experiments                      prints the list below as it stands, without seeds
#
# Each line below is an ordinary command: with a --seed it can be pasted into a shell (--list writes the $names out).
# Their flags are the paper's, but for taskinput's rates: those were chosen from a grid on seeds that are not reported
# (results/records/2026-11-23/tuning_taskinput.json).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

shared="--n_layers 2 --n_hiddens 100 --batch_size 1 --log_every 100 --cuda no"
rotations="--data_file mnist_rotations.pt --samples_per_task 1000 $shared"
permutations="--data_file mnist_permutations.pt --samples_per_task 1000 $shared"
many="--data_file mnist_manypermutations.pt --samples_per_task 200 $shared"

experiments() {
  cat <<LIST
######## MNIST Rotations: 20 tasks, 1000 examples of each ########
# no memory
python main.py --model online      $rotations --lr 0.0003
python main.py --model independent $rotations --lr 0.01
python main.py --model taskinput   $rotations --lr 0.01
python main.py --model ewc         $rotations --lr 0.001 --n_memories 10 --memory_strength 100
# GEM: 5120, 500, 200 memories in all
python main.py --model gem         $rotations --lr 0.01 --n_memories 256 --memory_strength 1
python main.py --model gem         $rotations --lr 0.01 --n_memories 25 --memory_strength 0
python main.py --model gem         $rotations --lr 0.01 --n_memories 10 --memory_strength 0
# ER (Algorithm 4)
python main.py --model eralg4      $rotations --memories 5120 --lr 0.1 --replay_batch_size 25
python main.py --model eralg4      $rotations --memories 500 --lr 0.1 --replay_batch_size 5
python main.py --model eralg4      $rotations --memories 200 --lr 0.1 --replay_batch_size 10
# ER with tasks weighed the same (Algorithm 5)
python main.py --model eralg5      $rotations --memories 5120 --lr 0.03 --replay_batch_size 100
python main.py --model eralg5      $rotations --memories 500 --lr 0.01 --replay_batch_size 100
python main.py --model eralg5      $rotations --memories 200 --lr 0.01 --replay_batch_size 50
# MER (Algorithm 1)
python main.py --model meralg1     $rotations --memories 5120 --lr 0.03 --beta 0.03 --gamma 1 --replay_batch_size 100 --batches_per_example 10
python main.py --model meralg1     $rotations --memories 500 --lr 0.1 --beta 0.01 --gamma 1 --replay_batch_size 10 --batches_per_example 10
python main.py --model meralg1     $rotations --memories 200 --lr 0.1 --beta 0.01 --gamma 1 --replay_batch_size 10 --batches_per_example 5
# MER with one big batch (Algorithm 6)
python main.py --model meralg6     $rotations --memories 5120 --lr 0.03 --gamma 0.1 --replay_batch_size 100
python main.py --model meralg6     $rotations --memories 500 --lr 0.1 --gamma 0.03 --replay_batch_size 10
python main.py --model meralg6     $rotations --memories 200 --lr 0.1 --gamma 0.03 --replay_batch_size 25
# MER with the current example at its own rate (Algorithm 7)
python main.py --model meralg7     $rotations --memories 5120 --lr 0.03 --gamma 0.03 --replay_batch_size 100 --s 5
python main.py --model meralg7     $rotations --memories 500 --lr 0.03 --gamma 0.03 --replay_batch_size 50 --s 5
python main.py --model meralg7     $rotations --memories 200 --lr 0.03 --gamma 0.03 --replay_batch_size 50 --s 5

######## MNIST Permutations: 20 tasks, 1000 examples of each ########
# no memory
python main.py --model online      $permutations --lr 0.003
python main.py --model independent $permutations --lr 0.01
python main.py --model taskinput   $permutations --lr 0.01
python main.py --model ewc         $permutations --lr 0.01 --n_memories 10 --memory_strength 10
# GEM: 5120, 500, 200 memories in all
python main.py --model gem         $permutations --lr 0.01 --n_memories 256 --memory_strength 1
python main.py --model gem         $permutations --lr 0.01 --n_memories 25 --memory_strength 1
python main.py --model gem         $permutations --lr 0.01 --n_memories 10 --memory_strength 0
# ER (Algorithm 4)
python main.py --model eralg4      $permutations --memories 5120 --lr 0.1 --replay_batch_size 25
python main.py --model eralg4      $permutations --memories 500 --lr 0.1 --replay_batch_size 10
python main.py --model eralg4      $permutations --memories 200 --lr 0.1 --replay_batch_size 10
# ER with tasks weighed the same (Algorithm 5)
python main.py --model eralg5      $permutations --memories 5120 --lr 0.01 --replay_batch_size 25
python main.py --model eralg5      $permutations --memories 500 --lr 0.01 --replay_batch_size 25
python main.py --model eralg5      $permutations --memories 200 --lr 0.01 --replay_batch_size 10
# MER (Algorithm 1)
python main.py --model meralg1     $permutations --memories 5120 --lr 0.03 --beta 0.03 --gamma 1 --replay_batch_size 100 --batches_per_example 10
python main.py --model meralg1     $permutations --memories 500 --lr 0.03 --beta 0.03 --gamma 1 --replay_batch_size 25 --batches_per_example 10
python main.py --model meralg1     $permutations --memories 200 --lr 0.03 --beta 0.03 --gamma 1 --replay_batch_size 10 --batches_per_example 10
# MER with one big batch (Algorithm 6)
python main.py --model meralg6     $permutations --memories 5120 --lr 0.03 --gamma 0.1 --replay_batch_size 50
python main.py --model meralg6     $permutations --memories 500 --lr 0.03 --gamma 0.3 --replay_batch_size 10
python main.py --model meralg6     $permutations --memories 200 --lr 0.1 --gamma 0.03 --replay_batch_size 5
# MER with the current example at its own rate (Algorithm 7)
python main.py --model meralg7     $permutations --memories 5120 --lr 0.01 --gamma 0.1 --replay_batch_size 100 --s 10
python main.py --model meralg7     $permutations --memories 500 --lr 0.01 --gamma 0.1 --replay_batch_size 25 --s 10
python main.py --model meralg7     $permutations --memories 200 --lr 0.03 --gamma 0.1 --replay_batch_size 5 --s 2

######## MNIST Many Permutations: 100 tasks, 200 examples of each ########
# no memory
python main.py --model online      $many --lr 0.003
python main.py --model independent $many --lr 0.01
python main.py --model taskinput   $many --lr 0.01
python main.py --model ewc         $many --lr 0.003 --n_memories 10 --memory_strength 1
# GEM: 5120 (51 of each task), 500 memories in all
python main.py --model gem         $many --lr 0.01 --n_memories 51 --memory_strength 0
python main.py --model gem         $many --lr 0.003 --n_memories 5 --memory_strength 0.1
# ER (Algorithm 4)
python main.py --model eralg4      $many --memories 5120 --lr 0.1 --replay_batch_size 25
python main.py --model eralg4      $many --memories 500 --lr 0.1 --replay_batch_size 25
# ER with tasks weighed the same (Algorithm 5)
python main.py --model eralg5      $many --memories 5120 --lr 0.003 --replay_batch_size 10
python main.py --model eralg5      $many --memories 500 --lr 0.01 --replay_batch_size 5
# MER (Algorithm 1)
python main.py --model meralg1     $many --memories 5120 --lr 0.1 --beta 0.01 --gamma 1 --replay_batch_size 5 --batches_per_example 10
python main.py --model meralg1     $many --memories 500 --lr 0.03 --beta 0.03 --gamma 1 --replay_batch_size 5 --batches_per_example 10
# MER with one big batch (Algorithm 6)
python main.py --model meralg6     $many --memories 5120 --lr 0.03 --gamma 0.1 --replay_batch_size 25
python main.py --model meralg6     $many --memories 500 --lr 0.1 --gamma 0.03 --replay_batch_size 5
# MER with the current example at its own rate (Algorithm 7)
python main.py --model meralg7     $many --memories 5120 --lr 0.03 --gamma 0.03 --replay_batch_size 100 --s 10
python main.py --model meralg7     $many --memories 500 --lr 0.03 --gamma 0.03 --replay_batch_size 5 --s 10
LIST
}

for word in "$@"; do
  case "$word" in
    --experiments) experiments && exit ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' mer_examples.sh ;;
  esac
done

for python in .venv/bin/python python3 python; do
  if command -v "$python" >/dev/null; then break; fi
done
exec "$python" -m sweep --commands - "$@" < <(experiments)
