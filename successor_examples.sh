#!/usr/bin/env bash
# What came after MER, beside MER, for some seeds, side by side on all cores; and how its hyperparameters were chosen.
#
#   ./successor_examples.sh 0 1 2 3 4              runs the list below; started again, it goes on where it stopped
#   ./successor_examples.sh --list 0               prints the full commands and runs nothing; filters are those of
#                                                  mer_examples.sh: --learner agem,der --data rotations --memories 200
#   ./successor_examples.sh --tune                 chooses the hyperparameters on seeds 100, 101 and 102 (filters, too)
#   ./successor_examples.sh --chosen RECORD…       prints the list below from the records of that, results/tuning/*.json
#   ./successor_examples.sh --alignment 0 1 2 3 4  runs some learners with their gradients compared (--alignment 10)
#   ./successor_examples.sh --experiments          prints the list as it stands, without seeds; after --tune or
#                                                  --alignment the list of that
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

mode=experiments prints="" words=()
for word in "$@"; do
  case "$word" in
    --tune) mode=points && words+=("$word") ;;
    --alignment | --chosen) mode=${word#--} ;;
    --experiments) prints=yes ;;
    *) words+=("$word") ;;
  esac
  case "$word" in -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' successor_examples.sh ;; esac
done

kept="--log_every 500"
case "$mode" in points | chosen) kept="--log_every 1000000 --keep_state no" ;; esac # only the last evaluation counts
shared="--n_layers 2 --n_hiddens 100 --batch_size 1 $kept --cuda no"
rotations="--data_file mnist_rotations.pt --samples_per_task 1000 $shared"
permutations="--data_file mnist_permutations.pt --samples_per_task 1000 $shared"
many="--data_file mnist_manypermutations.pt --samples_per_task 200 $shared"

# The grids. In --tune a value V,V,… stands for several, and all lines of one learner, data and memory size are points of
# one grid. Marked are the points that the authors published, for other minibatches than of one example: in Mammoth (128
# and as many draws, all images once) for agem, der, derpp, clser; in the authors' scripts (10 and 10 draws, permutations)
# for mir and gss, and (10 and 10 draws, these very streams) for lamaml. For eralg4, meralg6, meralg7 they are the paper's.
# er_ace has none for MNIST. 500 memories take the choice of 200, Many Permutations that of Permutations.
points() {
  for data in "$rotations" "$permutations"; do
    for memories in 5120 200; do
      cat <<LIST
# published: lr 0.1, 0.3
python main.py --model agem    $data --memories $memories --lr 0.003,0.01,0.03,0.1 --replay_batch_size 10,100
python main.py --model agem    $data --memories $memories --lr 0.0003,0.001,0.3 --replay_batch_size 100
# published: those with lr 0.2
python main.py --model der     $data --memories $memories --lr 0.003,0.01,0.03,0.1 --replay_batch_size 10 --alpha 0.5,1
python main.py --model der     $data --memories $memories --lr 0.003,0.01,0.03 --replay_batch_size 50 --alpha 1
python main.py --model der     $data --memories $memories --lr 0.2 --replay_batch_size 10 --alpha 0.5,1
# published: those with lr 0.2, and lr 0.1 with alpha 1
python main.py --model derpp   $data --memories $memories --lr 0.003,0.01,0.03,0.1 --replay_batch_size 10 --alpha 0.5,1 --beta 1
python main.py --model derpp   $data --memories $memories --lr 0.03 --replay_batch_size 50 --alpha 0.5 --beta 1
python main.py --model derpp   $data --memories $memories --lr 0.1 --replay_batch_size 10 --alpha 1 --beta 0.5
python main.py --model derpp   $data --memories $memories --lr 0.2 --replay_batch_size 10 --alpha 0.5 --beta 0.5,1
python main.py --model derpp   $data --memories $memories --lr 0.2 --replay_batch_size 10 --alpha 1 --beta 0.5
# published: lr 0.05 with by_place (what the authors' code does) or yes (what the paper says)
python main.py --model mir     $data --memories $memories --lr 0.003,0.01,0.03,0.05,0.1 --replay_batch_size 10
python main.py --model mir     $data --memories $memories --lr 0.05 --replay_batch_size 10 --compare_to_old_logits yes,by_place
python main.py --model mir     $data --memories $memories --lr 0.03 --replay_batch_size 25
python main.py --model er_ace  $data --memories $memories --lr 0.01,0.03,0.1,0.2 --replay_batch_size 10
python main.py --model er_ace  $data --memories $memories --lr 0.01,0.03,0.1 --replay_batch_size 50
# La-MAML; published: glances 5, opt_lr 0.3
python main.py --model lamaml  $data --memories $memories --replay_batch_size 10 --glances 1,5 --alpha_init 0.15 --opt_lr 0.3
python main.py --model lamaml  $data --memories $memories --replay_batch_size 10 --glances 1 --alpha_init 0.03,0.1 --opt_lr 0.1
# Sync; published: glances 5
python main.py --model lamaml  $data --memories $memories --replay_batch_size 10 --glances 5 --alpha_init 0.15 --opt_lr 0.1 --sync_update yes --opt_wt 0.1,0.3
python main.py --model lamaml  $data --memories $memories --replay_batch_size 10 --glances 1 --alpha_init 0.03 --opt_lr 0.1 --sync_update yes --opt_wt 0.03,0.1
python main.py --model lamaml  $data --memories $memories --replay_batch_size 10 --glances 1 --alpha_init 0.003,0.01 --opt_lr 0.01,0.1 --sync_update yes --opt_wt 0.1
# C-MAML; published: glances 5
python main.py --model lamaml  $data --memories $memories --replay_batch_size 10 --glances 5 --alpha_init 0.03,0.1 --learn_lr no --sync_update yes --opt_wt 0.1
python main.py --model lamaml  $data --memories $memories --replay_batch_size 10 --glances 1 --alpha_init 0.03 --learn_lr no --sync_update yes --opt_wt 0.03,0.1
python main.py --model lamaml  $data --memories $memories --replay_batch_size 10 --glances 1 --alpha_init 0.003,0.01 --learn_lr no --sync_update yes --opt_wt 0.1
# published: lr 0.2; first the averages of Rotations, then of Permutations
python main.py --model clser   $data --memories $memories --lr 0.03,0.1,0.2 --replay_batch_size 10 --reg_weight 0.75 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 1 --stable_model_alpha 0.999
python main.py --model clser   $data --memories $memories --lr 0.03,0.1,0.2 --replay_batch_size 10 --reg_weight 1 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 0.8 --stable_model_alpha 0.99
python main.py --model clser   $data --memories $memories --lr 0.1 --replay_batch_size 50 --reg_weight 0.75 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 1 --stable_model_alpha 0.999
# published: n_iter 3, lr 0.05
python main.py --model gss     $data --memories $memories --lr 0.001,0.003,0.01,0.05 --replay_batch_size 10 --n_iter 1,3
# published: lr 0.1 with all but 100 draws
python main.py --model eralg4  $data --memories $memories --lr 0.03,0.1,0.2 --replay_batch_size 10,25
python main.py --model eralg4  $data --memories $memories --lr 0.1 --replay_batch_size 5,100
# published: all but gamma 0.3 with 25 draws
python main.py --model meralg6 $data --memories $memories --lr 0.03 --gamma 0.1 --replay_batch_size 25,50,100
python main.py --model meralg6 $data --memories $memories --lr 0.1 --gamma 0.03 --replay_batch_size 5,10,25
python main.py --model meralg6 $data --memories $memories --lr 0.03 --gamma 0.3 --replay_batch_size 10,25
# published: all but 25 draws with lr 0.03
python main.py --model meralg7 $data --memories $memories --lr 0.03 --gamma 0.03 --replay_batch_size 25,50,100 --s 5
python main.py --model meralg7 $data --memories $memories --lr 0.01 --gamma 0.1 --replay_batch_size 25,100 --s 10
python main.py --model meralg7 $data --memories $memories --lr 0.03 --gamma 0.1 --replay_batch_size 5,25 --s 2
LIST
    done
    echo "python main.py --model joint $data --lr 0.003,0.01,0.02,0.03,0.05,0.1"
  done
}

# The lines of the list below that tunings chose, from their records.
chosen() {
  local line found
  found=$("$python" -m sweep chosen "$@")
  while read -r line; do
    case "$line" in
      *" $rotations "* | *" $permutations "*) ;;
      *) echo "error: $line is not of these grids; name the records of --tune alone" >&2 && return 2 ;;
    esac
  done <<<"$found"
  section "MNIST Rotations: 20 tasks, 1000 examples of each" rotations rotations 500 200
  section "MNIST Permutations: 20 tasks, 1000 examples of each" permutations permutations 500 200
  section "MNIST Many Permutations: 100 tasks, 200 examples of each" many permutations 500
}

# section TITLE NAME OF SIZE…: those of $NAME, by the choices for $OF, of 200 memories for all of these sizes
section() {
  local title=$1 name=$2 of=$3 model flags size
  shift 3
  printf '\n######## %s ########\n' "$title"
  while read -r _ _ _ model flags; do
    case "$flags" in
      "${!of} --memories 200 "*)
        for size in "$@"; do
          printf 'python main.py --model %-7s $%s --memories %s %s\n' "$model" "$name" "$size" "${flags#*--memories 200 }"
        done
        ;;
      "${!of} "*) printf 'python main.py --model %-7s $%s %s\n' "$model" "$name" "${flags#"${!of} "}" ;;
    esac
  done <<<"$found"
}

# The learners whose gradients are compared, at 200 memories: the paper's with its flags, lamaml with those of the list.
alignment() {
  { ./mer_examples.sh --experiments | grep -E -- '--model (online|eralg4|gem|meralg1|meralg6) ' &&
    experiments | grep -e '--model lamaml '; } | grep -E -e '_(rotations|permutations).pt ' |
    grep -E -e '--(model online|memories 200|n_memories 10) ' | sed -E 's/--log_every [0-9]+/--log_every 1000 --alignment 10/'
}

# What --tune chose, by --chosen.
experiments() {
  cat <<LIST
######## MNIST Rotations: 20 tasks, 1000 examples of each ########
python main.py --model agem    $rotations --memories 5120 --lr 0.0003 --replay_batch_size 100
python main.py --model der     $rotations --memories 5120 --lr 0.03 --replay_batch_size 50 --alpha 1
python main.py --model derpp   $rotations --memories 5120 --lr 0.01 --replay_batch_size 10 --alpha 1 --beta 1
python main.py --model mir     $rotations --memories 5120 --lr 0.01 --replay_batch_size 10
python main.py --model er_ace  $rotations --memories 5120 --lr 0.03 --replay_batch_size 10
python main.py --model lamaml  $rotations --memories 5120 --replay_batch_size 10 --glances 5 --alpha_init 0.03 --learn_lr no --sync_update yes --opt_wt 0.1
python main.py --model clser   $rotations --memories 5120 --lr 0.1 --replay_batch_size 10 --reg_weight 1 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 0.8 --stable_model_alpha 0.99
python main.py --model gss     $rotations --memories 5120 --lr 0.003 --replay_batch_size 10 --n_iter 3
python main.py --model eralg4  $rotations --memories 5120 --lr 0.1 --replay_batch_size 10
python main.py --model meralg6 $rotations --memories 5120 --lr 0.03 --gamma 0.1 --replay_batch_size 100
python main.py --model meralg7 $rotations --memories 5120 --lr 0.03 --gamma 0.03 --replay_batch_size 100 --s 5
python main.py --model agem    $rotations --memories 500 --lr 0.0003 --replay_batch_size 100
python main.py --model agem    $rotations --memories 200 --lr 0.0003 --replay_batch_size 100
python main.py --model der     $rotations --memories 500 --lr 0.01 --replay_batch_size 10 --alpha 1
python main.py --model der     $rotations --memories 200 --lr 0.01 --replay_batch_size 10 --alpha 1
python main.py --model derpp   $rotations --memories 500 --lr 0.01 --replay_batch_size 10 --alpha 1 --beta 1
python main.py --model derpp   $rotations --memories 200 --lr 0.01 --replay_batch_size 10 --alpha 1 --beta 1
python main.py --model mir     $rotations --memories 500 --lr 0.01 --replay_batch_size 10
python main.py --model mir     $rotations --memories 200 --lr 0.01 --replay_batch_size 10
python main.py --model er_ace  $rotations --memories 500 --lr 0.03 --replay_batch_size 10
python main.py --model er_ace  $rotations --memories 200 --lr 0.03 --replay_batch_size 10
python main.py --model lamaml  $rotations --memories 500 --replay_batch_size 10 --glances 1 --alpha_init 0.003 --opt_lr 0.01 --sync_update yes --opt_wt 0.1
python main.py --model lamaml  $rotations --memories 200 --replay_batch_size 10 --glances 1 --alpha_init 0.003 --opt_lr 0.01 --sync_update yes --opt_wt 0.1
python main.py --model clser   $rotations --memories 500 --lr 0.1 --replay_batch_size 10 --reg_weight 0.75 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 1 --stable_model_alpha 0.999
python main.py --model clser   $rotations --memories 200 --lr 0.1 --replay_batch_size 10 --reg_weight 0.75 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 1 --stable_model_alpha 0.999
python main.py --model gss     $rotations --memories 500 --lr 0.01 --replay_batch_size 10 --n_iter 1
python main.py --model gss     $rotations --memories 200 --lr 0.01 --replay_batch_size 10 --n_iter 1
python main.py --model eralg4  $rotations --memories 500 --lr 0.2 --replay_batch_size 25
python main.py --model eralg4  $rotations --memories 200 --lr 0.2 --replay_batch_size 25
python main.py --model meralg6 $rotations --memories 500 --lr 0.1 --gamma 0.03 --replay_batch_size 25
python main.py --model meralg6 $rotations --memories 200 --lr 0.1 --gamma 0.03 --replay_batch_size 25
python main.py --model meralg7 $rotations --memories 500 --lr 0.03 --gamma 0.03 --replay_batch_size 100 --s 5
python main.py --model meralg7 $rotations --memories 200 --lr 0.03 --gamma 0.03 --replay_batch_size 100 --s 5
python main.py --model joint   $rotations --lr 0.01

######## MNIST Permutations: 20 tasks, 1000 examples of each ########
python main.py --model agem    $permutations --memories 5120 --lr 0.01 --replay_batch_size 100
python main.py --model der     $permutations --memories 5120 --lr 0.01 --replay_batch_size 50 --alpha 1
python main.py --model derpp   $permutations --memories 5120 --lr 0.01 --replay_batch_size 10 --alpha 0.5 --beta 1
python main.py --model mir     $permutations --memories 5120 --lr 0.01 --replay_batch_size 10
python main.py --model er_ace  $permutations --memories 5120 --lr 0.03 --replay_batch_size 10
python main.py --model lamaml  $permutations --memories 5120 --replay_batch_size 10 --glances 5 --alpha_init 0.1 --learn_lr no --sync_update yes --opt_wt 0.1
python main.py --model clser   $permutations --memories 5120 --lr 0.1 --replay_batch_size 10 --reg_weight 1 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 0.8 --stable_model_alpha 0.99
python main.py --model gss     $permutations --memories 5120 --lr 0.003 --replay_batch_size 10 --n_iter 3
python main.py --model eralg4  $permutations --memories 5120 --lr 0.1 --replay_batch_size 25
python main.py --model meralg6 $permutations --memories 5120 --lr 0.03 --gamma 0.1 --replay_batch_size 100
python main.py --model meralg7 $permutations --memories 5120 --lr 0.01 --gamma 0.1 --replay_batch_size 100 --s 10
python main.py --model agem    $permutations --memories 500 --lr 0.01 --replay_batch_size 100
python main.py --model agem    $permutations --memories 200 --lr 0.01 --replay_batch_size 100
python main.py --model der     $permutations --memories 500 --lr 0.01 --replay_batch_size 10 --alpha 1
python main.py --model der     $permutations --memories 200 --lr 0.01 --replay_batch_size 10 --alpha 1
python main.py --model derpp   $permutations --memories 500 --lr 0.01 --replay_batch_size 10 --alpha 0.5 --beta 1
python main.py --model derpp   $permutations --memories 200 --lr 0.01 --replay_batch_size 10 --alpha 0.5 --beta 1
python main.py --model mir     $permutations --memories 500 --lr 0.01 --replay_batch_size 10
python main.py --model mir     $permutations --memories 200 --lr 0.01 --replay_batch_size 10
python main.py --model er_ace  $permutations --memories 500 --lr 0.03 --replay_batch_size 50
python main.py --model er_ace  $permutations --memories 200 --lr 0.03 --replay_batch_size 50
python main.py --model lamaml  $permutations --memories 500 --replay_batch_size 10 --glances 1 --alpha_init 0.003 --learn_lr no --sync_update yes --opt_wt 0.1
python main.py --model lamaml  $permutations --memories 200 --replay_batch_size 10 --glances 1 --alpha_init 0.003 --learn_lr no --sync_update yes --opt_wt 0.1
python main.py --model clser   $permutations --memories 500 --lr 0.1 --replay_batch_size 10 --reg_weight 0.75 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 1 --stable_model_alpha 0.999
python main.py --model clser   $permutations --memories 200 --lr 0.1 --replay_batch_size 10 --reg_weight 0.75 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 1 --stable_model_alpha 0.999
python main.py --model gss     $permutations --memories 500 --lr 0.003 --replay_batch_size 10 --n_iter 3
python main.py --model gss     $permutations --memories 200 --lr 0.003 --replay_batch_size 10 --n_iter 3
python main.py --model eralg4  $permutations --memories 500 --lr 0.2 --replay_batch_size 25
python main.py --model eralg4  $permutations --memories 200 --lr 0.2 --replay_batch_size 25
python main.py --model meralg6 $permutations --memories 500 --lr 0.1 --gamma 0.03 --replay_batch_size 10
python main.py --model meralg6 $permutations --memories 200 --lr 0.1 --gamma 0.03 --replay_batch_size 10
python main.py --model meralg7 $permutations --memories 500 --lr 0.01 --gamma 0.1 --replay_batch_size 25 --s 10
python main.py --model meralg7 $permutations --memories 200 --lr 0.01 --gamma 0.1 --replay_batch_size 25 --s 10
python main.py --model joint   $permutations --lr 0.01

######## MNIST Many Permutations: 100 tasks, 200 examples of each ########
python main.py --model agem    $many --memories 5120 --lr 0.01 --replay_batch_size 100
python main.py --model der     $many --memories 5120 --lr 0.01 --replay_batch_size 50 --alpha 1
python main.py --model derpp   $many --memories 5120 --lr 0.01 --replay_batch_size 10 --alpha 0.5 --beta 1
python main.py --model mir     $many --memories 5120 --lr 0.01 --replay_batch_size 10
python main.py --model er_ace  $many --memories 5120 --lr 0.03 --replay_batch_size 10
python main.py --model lamaml  $many --memories 5120 --replay_batch_size 10 --glances 5 --alpha_init 0.1 --learn_lr no --sync_update yes --opt_wt 0.1
python main.py --model clser   $many --memories 5120 --lr 0.1 --replay_batch_size 10 --reg_weight 1 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 0.8 --stable_model_alpha 0.99
python main.py --model gss     $many --memories 5120 --lr 0.003 --replay_batch_size 10 --n_iter 3
python main.py --model eralg4  $many --memories 5120 --lr 0.1 --replay_batch_size 25
python main.py --model meralg6 $many --memories 5120 --lr 0.03 --gamma 0.1 --replay_batch_size 100
python main.py --model meralg7 $many --memories 5120 --lr 0.01 --gamma 0.1 --replay_batch_size 100 --s 10
python main.py --model agem    $many --memories 500 --lr 0.01 --replay_batch_size 100
python main.py --model der     $many --memories 500 --lr 0.01 --replay_batch_size 10 --alpha 1
python main.py --model derpp   $many --memories 500 --lr 0.01 --replay_batch_size 10 --alpha 0.5 --beta 1
python main.py --model mir     $many --memories 500 --lr 0.01 --replay_batch_size 10
python main.py --model er_ace  $many --memories 500 --lr 0.03 --replay_batch_size 50
python main.py --model lamaml  $many --memories 500 --replay_batch_size 10 --glances 1 --alpha_init 0.003 --learn_lr no --sync_update yes --opt_wt 0.1
python main.py --model clser   $many --memories 500 --lr 0.1 --replay_batch_size 10 --reg_weight 0.75 --plastic_model_update_freq 1 --plastic_model_alpha 0.99 --stable_model_update_freq 1 --stable_model_alpha 0.999
python main.py --model gss     $many --memories 500 --lr 0.003 --replay_batch_size 10 --n_iter 3
python main.py --model eralg4  $many --memories 500 --lr 0.2 --replay_batch_size 25
python main.py --model meralg6 $many --memories 500 --lr 0.1 --gamma 0.03 --replay_batch_size 10
python main.py --model meralg7 $many --memories 500 --lr 0.01 --gamma 0.1 --replay_batch_size 25 --s 10
python main.py --model joint   $many --lr 0.01
LIST
}

python=$(for python in .venv/bin/python python3 python; do command -v "$python" && break; done)
if [ "$mode" = chosen ]; then
  chosen ${words[@]+"${words[@]}"}
elif [ "$prints" ]; then
  "$mode"
else
  exec "$python" -m sweep --commands - ${words[@]+"${words[@]}"} < <("$mode")
fi
